"""A chat template is a stranger's program: it takes its own model's chats, and nothing else."""

import asyncio
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status

from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.status import Reason, unpack
from tests.fakes import small_tokenizer
from tests.fakes.service_process import ServiceProcess, fake_engine, free_ports, running
from tests.system.fleets import TIMEOUT, fleet_of, until

FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
STRANGER = ("--model-name", "stranger", "--fingerprint", "0" * 32)


def chat(model):
    message = router_pb2.ChatMessage(role="user", content="introduce yourself")
    return router_pb2.GenerateRequest(
        model=model,
        chat=router_pb2.Chat(messages=[message]),
        sampling_params=router_pb2.SamplingParams(max_tokens=4, ignore_eos=True),
    )


async def generate(stub, request) -> int:
    """Returns the number of tokens of the answer."""
    responses = [r async for r in stub.Generate(request, timeout=TIMEOUT)]
    return responses[-1].finish.completion_token_count


async def reason_of(stub, request) -> str:
    """Returns reason and text of the error that a request ends with, or else its code."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await generate(stub, request)
    status = rpc_status.from_call(raised.value)
    if status is None:
        return raised.value.code().name
    return f"{unpack(status.code, status.message, status.details).reason} {status.message}"


def workers() -> set[int]:
    """Returns the processes that run a chat template, of any router."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"template_worker.py" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


@asynccontextmanager
async def two_models(folder, *router_options):
    good = small_tokenizer.save(folder / "good")
    bad = small_tokenizer.save(
        folder / "bad",
        chat_template="{% if messages[0].content != 'quick' %}" + FOREVER + "{% endif %}quick",
    )
    engines = (("--tokenizer", str(good)), (*STRANGER, "--tokenizer", str(bad)))
    before = workers()
    async with fleet_of(folder, *engines, router_options=router_options) as fleet:
        yield fleet
    await until(lambda: asyncio.to_thread(lambda: not workers() - before))


async def test_template_that_loops_holds_its_own_chats_only(tmp_path):
    async with (
        two_models(tmp_path, "--template-seconds", "0.5") as fleet,
        fleet.client() as stub,
        asyncio.timeout(TIMEOUT),
        asyncio.TaskGroup() as group,
    ):
        strangers = [group.create_task(reason_of(stub, chat("stranger"))) for _ in range(4)]
        for _ in range(10):
            assert await generate(stub, chat("fake")) == 4

        errors = [await stranger for stranger in strangers]
        assert all(error.startswith(f"{Reason.BAD_CHAT} ") for error in errors), errors
        assert "took longer than 0.5 s" in errors[0]
        # The first two took a worker each; the others were not let near a third.
        assert sum("2 times in a row" in error for error in errors) == 2
        assert await fleet.metric("template_worker_ends_total", cause="time") == 2
        assert await fleet.metric("requests_total", outcome="bad_chat") == 4
        log = fleet.router.log_path.read_text()
        assert log.count("template worker ended model=stranger cause=time") == 2


async def test_router_ends_in_its_grace_while_a_template_runs(tmp_path):
    options = ("--template-seconds", "60", "--drain-grace-seconds", "0.5")
    async with two_models(tmp_path, *options) as fleet, fleet.client() as stub:
        assert await generate(stub, chat("fake")) == 4
        stranger = asyncio.ensure_future(reason_of(stub, chat("stranger")))

        async def is_under_way():
            return await fleet.metric("requests_in_flight") == 1

        await until(is_under_way)
        fleet.router.send_signal(signal.SIGTERM)

        # Less than the template would take.
        async with asyncio.timeout(20):
            assert await fleet.router.wait() == 0
            assert await stranger == "UNAVAILABLE"
        assert "router ended" in fleet.router.log_path.read_text()


async def test_router_ends_in_its_grace_whatever_its_tokenizer_does(tmp_path):
    engine_port, port, operations_port = free_ports(3)
    tokenizer = small_tokenizer.save(tmp_path / "tokenizer")
    engine = fake_engine(engine_port, tmp_path / "engine.log", "--tokenizer", str(tokenizer))
    arguments = ["tests.fakes.stuck_router", "--engines", engine.address, "--port", str(port)]
    arguments += ["--operations-port", str(operations_port), "--drain-grace-seconds", "0.5"]
    router = ServiceProcess(arguments, port, tmp_path / "router.log")

    async def log_has(text):
        return text in await asyncio.to_thread(router.log_path.read_text)

    async with running(engine, router), grpc.aio.insecure_channel(router.address) as channel:
        await until(lambda: log_has("router ready"))
        stub = router_pb2_grpc.RouterServiceStub(channel)
        text = asyncio.ensure_future(
            reason_of(stub, router_pb2.GenerateRequest(text="never", model="fake"))
        )
        await until(lambda: log_has("a text is tokenized for ever"))

        router.send_signal(signal.SIGTERM)

        async with asyncio.timeout(20):
            assert await router.wait() == 0
            assert await text == "UNAVAILABLE"
