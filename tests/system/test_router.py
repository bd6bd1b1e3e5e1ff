"""The router as a process of its own, beside engines that fake only the model."""

import asyncio
import dataclasses
import re
import signal
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from protos.pagestream.router.v1 import router_pb2 as pb
from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire import channel
from protos.wire.sampling_params import BASIC_PARAMS
from protos.wire.status import Reason, unpack
from router.text.tokenizer import Tokenizer
from tests.fakes import small_tokenizer
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig, expected_tokens
from tests.fakes.service_process import free_ports

ROOT = Path(__file__).parents[2]
SERVICE = "pagestream.router.v1.RouterService"
TOKENIZER = Tokenizer.from_files(small_tokenizer.files())
VOCAB_SIZE = TOKENIZER.backend.get_vocab_size()
Status = health_pb2.HealthCheckResponse


@dataclass(kw_only=True)
class Router:
    process: asyncio.subprocess.Process
    port: int
    operations_port: int
    client: grpc.aio.Channel
    log: list[str]

    @property
    def stub(self):
        return router_pb2_grpc.RouterServiceStub(self.client)

    async def watch_health(self, *wanted) -> None:
        """Waits until readiness has been each of these, in order."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        call = health_pb2_grpc.HealthStub(self.client).Watch(request, timeout=20)
        for status in wanted:
            while (await call.read()).status != status:
                pass
        call.cancel()

    async def get(self, path: str) -> tuple[int, str]:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.operations_port)
            writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            answer = (await reader.read()).decode()
            writer.close()
        return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]

    async def wait_for_log(self, text: str) -> str:
        async with asyncio.timeout(60):
            while text not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"the router ended before it logged {text!r}: {self.log}"
                self.log.append(line)
            return line

    async def end(self) -> int:
        async with asyncio.timeout(20):
            self.log += (await self.process.stderr.read()).decode().splitlines()
            return await self.process.wait()


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", *arguments), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def routing(*addresses: str, options: tuple[str, ...] = ()):
    ports = ("--port", "0", "--operations-port", "0")
    engines = ["--engines", ",".join(addresses)] if addresses else []
    process = await start(*engines, *ports, *options)
    router = Router(process=process, port=0, operations_port=0, client=None, log=[])
    try:
        line = await router.wait_for_log("router listening")
        router.port = int(re.search(r" port=(\d+)", line)[1])
        router.operations_port = int(re.search(r"operations_port=(\d+)", line)[1])
        target = f"127.0.0.1:{router.port}"
        async with grpc.aio.insecure_channel(target, options=channel.client_options()) as client:
            router.client = client
            yield router
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return small_tokenizer.save(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def config(tokenizer_folder):
    return FakeEngineConfig(
        vocab_size=VOCAB_SIZE, tokenizer=tokenizer_folder, decode_step_seconds=0.001
    )


def greedy(text="the quick brown fox", max_tokens=32) -> pb.GenerateRequest:
    params = pb.SamplingParams(temperature=0, max_tokens=max_tokens)
    return pb.GenerateRequest(text=text, sampling_params=params)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    status = rpc_status.from_call(caught.value)
    return caught.value.code().name, unpack(status.code, status.message, status.details)


def free_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


async def test_router_waits_for_its_first_engine_and_notices_its_loss(config):
    address = free_address()
    async with routing(address) as router:
        assert await router.get("/readyz") == (503, "waiting: no engine takes requests\n")
        assert (await router.get("/livez"))[0] == 200
        code, error = await refusal(router.stub.Generate(greedy(), timeout=10))
        assert (code, error.reason) == ("UNAVAILABLE", "NO_ENGINE")
        assert error.retry_after > 0

        async with FakeEngine(config, port=int(address.rpartition(":")[2])):
            await router.watch_health(Status.SERVING)
            assert (await router.get("/readyz"))[0] == 200
            assert [m async for m in router.stub.Generate(greedy(), timeout=10)]

        await router.watch_health(Status.NOT_SERVING)
        assert (await router.get("/readyz"))[0] == 503


async def test_engines_of_a_file_come_and_go_with_it(config, tmp_path):
    file = tmp_path / "engines"
    first, second = free_address(), free_address()
    file.write_text(f"{first}\n")
    ports = [int(address.rpartition(":")[2]) for address in (first, second)]
    async with (
        FakeEngine(config, port=ports[0]) as old,
        FakeEngine(config, port=ports[1]) as new,
        routing(options=("--engines-file", str(file))) as router,
    ):
        await router.watch_health(Status.SERVING)
        [m async for m in router.stub.Generate(greedy(), timeout=10)]
        assert len(old.submissions) == 1

        file.write_text(f"# the old one is away\n{second}\n")

        await router.wait_for_log(f"engine left engine={first}")
        await router.watch_health(Status.SERVING)
        [m async for m in router.stub.Generate(greedy(), timeout=10)]
        assert (len(old.submissions), len(new.submissions)) == (1, 1)


async def test_bad_file_of_engines_is_one_line_and_exit_code_2(tmp_path):
    process = await start("--engines-file", str(tmp_path / "missing"))
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert len(errors.decode().splitlines()) == 1
    assert "missing" in errors.decode()


async def test_many_answers_at_once_are_each_whole(config):
    words = ["introduce yourself", "list all prime numbers", "Grüße 😀", "the quick brown fox"]
    texts = [f"{word} {number}" for number in range(10) for word in words]

    async def ask(router, text):
        messages = [m async for m in router.stub.Generate(greedy(text), timeout=20)]
        token_ids = [token_id for m in messages for token_id in m.token_ids]
        prompt = TOKENIZER.encode_text(text)
        assert token_ids == expected_tokens(prompt, 32, config=config)
        full = TOKENIZER.decode(token_ids, skip_special_tokens=True)
        assert "".join(m.text for m in messages) == full
        assert messages[0].admission.prompt_token_count == len(prompt)
        assert messages[-1].finish.completion_token_count == 32
        return messages[0].admission.engine

    async with (
        FakeEngine(config) as one,
        FakeEngine(config) as two,
        routing(one.address, two.address) as router,
    ):
        await router.watch_health(Status.SERVING)
        engines = await asyncio.gather(*(ask(router, text) for text in texts))
        _, metrics = await router.get("/metrics")

    assert set(engines) <= {one.address, two.address}
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    model = f'model_name="{config.model_name}"'

    def value(name: str, *labels: str) -> float:
        return float(values[f"pagestream_router_{name}{{{','.join((*labels, model))}}}"])

    length = f'pagestream_router_requests_total{{{model},outcome="length"}}'
    assert float(values[length]) == len(texts)
    assert value("requests_in_flight") == 0
    assert value("generated_tokens_total") == 32 * len(texts)
    assert value("time_added_seconds_count") == len(texts)
    assert value("engine_requests_in_flight", f'engine="{one.address}"') == 0


async def test_cancelled_call_is_gone_from_its_engine(config):
    async with FakeEngine(config) as engine, routing(engine.address) as router:
        await router.watch_health(Status.SERVING)
        call = router.stub.Generate(greedy(max_tokens=4000), timeout=20)
        await call.read()
        assert engine.num_running == 1

        call.cancel()

        await engine.wait_until(lambda: not engine.num_running)


async def test_parameter_that_no_engine_supports_is_refused_by_name(config):
    config = dataclasses.replace(config, supported_params=BASIC_PARAMS)
    async with FakeEngine(config) as engine, routing(engine.address) as router:
        await router.watch_health(Status.SERVING)
        request = greedy()
        request.sampling_params.top_k = 5

        code, error = await refusal(router.stub.Generate(request, timeout=10))

    assert (code, error.reason) == ("INVALID_ARGUMENT", "UNSUPPORTED_PARAMETER")
    assert "top_k" in error.message
    assert error.domain == "pagestream.router.v1"


async def test_reflection_lists_the_services(config):
    async with routing(free_address()) as router:
        stub = reflection_pb2_grpc.ServerReflectionStub(router.client)
        call = stub.ServerReflectionInfo(timeout=10)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        call.cancel()

    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_sigterm_finishes_what_runs_and_refuses_what_comes(config):
    async with FakeEngine(config) as engine, routing(engine.address) as router:
        await router.watch_health(Status.SERVING)
        engine.stall()
        running = router.stub.Generate(greedy(), timeout=20)
        await engine.wait_until(lambda: engine.num_waiting or engine.num_running)

        router.process.send_signal(signal.SIGTERM)

        await router.watch_health(Status.NOT_SERVING)
        assert (await router.get("/readyz"))[0] == 503
        assert (await router.get("/livez"))[0] == 200
        code, error = await refusal(router.stub.Generate(greedy(), timeout=10))
        assert (code, error.reason) == ("UNAVAILABLE", "DRAINING")
        engine.resume()
        messages = [message async for message in running]
        assert messages[-1].finish.completion_token_count == 32
        assert await router.end() == 0


@pytest.mark.parametrize(
    ("options", "num_signals", "why"),
    [((), 2, "second signal"), (("--drain-grace-seconds", "0.1"), 1, "drain grace over")],
)
async def test_drain_ends_with_the_grace_or_a_second_signal(config, options, num_signals, why):
    async with FakeEngine(config) as engine, routing(engine.address, options=options) as router:
        await router.watch_health(Status.SERVING)
        engine.stall()
        running = router.stub.Generate(greedy(), timeout=20)
        await engine.wait_until(lambda: engine.num_waiting or engine.num_running)

        for number in range(num_signals):
            router.process.send_signal(signal.SIGTERM)
            await router.wait_for_log("router draining" if number == 0 else why)

        assert await router.end() == (128 + signal.SIGTERM if num_signals == 2 else 0)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await running.read()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        if why == "drain grace over":
            status = rpc_status.from_call(raised.value)
            reason = unpack(status.code, status.message, status.details).reason
            assert reason == Reason.DRAINING
        await engine.wait_until(lambda: not engine.num_waiting + engine.num_running)


async def test_port_in_use_is_one_line_and_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await start("--engines", "a:1", "--port", port, "--operations-port", "0")
        async with asyncio.timeout(20):
            _, errors = await process.communicate()

    assert process.returncode == 2
    assert errors.decode() == (
        f"router: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "choose another --port or host\n"
    )
