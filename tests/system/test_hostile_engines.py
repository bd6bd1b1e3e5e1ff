"""Hostile engines beside good ones at one router, a process of its own that must not mind.

What each engine does is in `tests.fakes.hostile_modes`. Each serves a model together with a good
engine, takes turns with it, and must cost nobody a token: what it fails goes on at the good one.
"""

import asyncio
import math
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from examples.demo.services import http_get
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options
from tests.fakes import small_tokenizer
from tests.fakes.checked_stream import CheckedStream
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.fakes.hostile_engine import NUM_TOKENS, HostileEngine, Mode
from tests.fakes.hostile_modes import MODES
from tests.fakes.service_process import HOST, ServiceProcess, free_ports, running
from tests.system.fleets import metric, tasks_at_rest, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT = 60.0
NUM_STREAMS = 4
"""Of which each engine of the model gets half, unless the router has left the hostile one alone."""
SLACK_BYTES = 64 << 20
"""Of memory, over what the router had before: arenas and buffers that are kept for the next."""
MAX_ERROR_BYTES = 2048


@dataclass
class Site:
    """One router and, for each mode, a hostile and a good engine."""

    router: ServiceProcess
    operations: str
    stub: router_pb2_grpc.RouterServiceStub
    hostile: dict[str, HostileEngine]
    good: dict[str, FakeEngine]
    num_bytes: float = 0.0
    """Of the router's memory at rest."""
    num_tasks: float = 0.0
    num_log_bytes: int = 0

    async def engines(self) -> dict[str, router_pb2.Engine]:
        listed = await self.stub.ListEngines(
            router_pb2.ListEnginesRequest(), timeout=TIMEOUT, wait_for_ready=True
        )
        return {engine.address: engine for engine in listed.engines}

    async def resident_bytes(self) -> float:
        text = await asyncio.to_thread(http_get, self.operations, "/metrics")
        return float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[1])

    def new_log(self) -> str:
        """Returns what the router logged since the last call."""
        text = self.router.log_path.read_text(errors="replace")
        start, self.num_log_bytes = self.num_log_bytes, len(text)
        return text[start:]


def modes(*, is_long: bool) -> list[Mode]:
    return [mode for mode in MODES if mode.is_long is is_long]


class GoodEngine(FakeEngine):
    """Has the model of a hostile engine, which a router asks for the tokenizer first."""

    def __init__(self, config, hostile):
        super().__init__(config)
        self._hostile = hostile

    async def GetTokenizer(self, request, context):
        await self._hostile.is_asked_for_tokenizer.wait()
        async for message in super().GetTokenizer(request, context):
            yield message


def template_of(mode):
    # Of each mode another, so that no router takes one tokenizer for all.
    return "{{ '" + mode.name + "' }}"


def config_of(mode, folder):
    tokenizer = None
    if mode.transfer is not None:
        tokenizer = small_tokenizer.save(folder / mode.name, chat_template=template_of(mode))
    return FakeEngineConfig(model_name=mode.name, block_size=4, tokenizer=tokenizer)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    async with AsyncExitStack() as stack:
        hostile, good = {}, {}
        for mode in MODES:
            config = config_of(mode, folder)
            bad = hostile[mode.name] = HostileEngine(mode, config)
            await stack.enter_async_context(bad)
            good[mode.name] = await stack.enter_async_context(GoodEngine(config, bad))
        addresses = [e.address for name in hostile for e in (hostile[name], good[name])]
        port, operations_port = free_ports(2)
        arguments = ["router", "--engines", ",".join(addresses), "--port", str(port)]
        arguments += ["--operations-port", str(operations_port), "--placement", "round_robin"]
        router = ServiceProcess(arguments, port, folder / "router.log")
        await stack.enter_async_context(running(router))
        client = grpc.aio.insecure_channel(router.address, options=client_options())
        stub = router_pb2_grpc.RouterServiceStub(await stack.enter_async_context(client))
        site = Site(router, f"{HOST}:{operations_port}", stub, hostile, good)
        await until(lambda: all_are_met(site))
        site.num_bytes = await site.resident_bytes()
        site.num_tasks = await tasks_at_rest(site.operations)
        yield site


async def all_are_met(site):
    """Returns whether the good engines serve, and the hostile ones do or were found out."""
    engines = await site.engines()
    serving = router_pb2.ENGINE_STATE_SERVING
    return all(
        engines[site.good[mode.name].address].state == serving
        and is_as_expected(engines[site.hostile[mode.name].address], mode)
        for mode in MODES
    )


def is_as_expected(engine, mode):
    is_found_out = engine.state == router_pb2.ENGINE_STATE_UNAVAILABLE
    return engine.state == router_pb2.ENGINE_STATE_SERVING or (
        is_found_out and mode.detail in engine.detail
    )


async def check_mode(site, mode):
    hostile, good = site.hostile[mode.name], site.good[mode.name]
    hostile.is_asked.set()
    num_faults = await metric(site.operations, "engine_faults_total", kind=mode.kind or "violation")
    streams = [
        CheckedStream([1, 2, 3, n], NUM_TOKENS, model=mode.name, params=mode.params)
        for n in range(NUM_STREAMS)
    ]
    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(stream.run(site.stub, TIMEOUT))

    for stream in streams:
        check_stream(stream, mode)
    if mode.transfer is not None:
        await check_tokenizer(site, mode)
    if mode.detail:
        await until(lambda: is_unavailable(site, mode))
    if mode.kind:
        kind = mode.kind
        await until(lambda: has_more_faults(site, kind, num_faults))
    engines = await site.engines()
    assert engines[good.address].state == router_pb2.ENGINE_STATE_SERVING
    assert len(engines[hostile.address].detail) < MAX_ERROR_BYTES
    costs = engines[good.address].reference_cost
    assert math.isfinite(costs.wait.seconds)
    log = site.new_log()
    assert "Traceback" not in log, log[-3000:]
    assert mode.log in log
    await until(lambda: is_at_rest(site, hostile, good))


def check_stream(stream, mode):
    if mode.is_refusal and stream.error is not None:
        # Nothing of it is larger than a client of gRPC takes.
        status = stream.status
        assert stream.error.code() is not grpc.StatusCode.OK
        assert len(status.message.encode()) < MAX_ERROR_BYTES
        assert sum(map(len, [*status.metadata, *status.metadata.values()])) < MAX_ERROR_BYTES
        assert not stream.fault_so_far
    else:
        assert stream.error is None
        assert not stream.fault


async def check_tokenizer(site, mode):
    """The hostile engine was asked, and the good one was believed."""
    request = router_pb2.TokenizeRequest(model=mode.name)
    request.chat.messages.add(role="user", content="hi")
    answer = await site.stub.Tokenize(request, timeout=TIMEOUT)
    assert site.hostile[mode.name].is_asked_for_tokenizer.is_set()
    backend = Tokenizer.from_str(small_tokenizer.files()["tokenizer.json"].decode())
    assert list(answer.token_ids) == backend.encode(mode.name).ids


async def is_unavailable(site, mode):
    engine = (await site.engines())[site.hostile[mode.name].address]
    return engine.state == router_pb2.ENGINE_STATE_UNAVAILABLE and mode.detail in engine.detail


async def has_more_faults(site, kind, num_faults):
    return await metric(site.operations, "engine_faults_total", kind=kind) > num_faults


async def is_at_rest(site, hostile, good):
    in_flight = [
        await metric(site.operations, "engine_requests_in_flight", engine=engine.address)
        for engine in (hostile, good)
    ]
    is_idle = not good.num_running + good.num_waiting
    return in_flight == [0, 0] and is_idle and await is_memory_back(site)


async def is_memory_back(site):
    return await site.resident_bytes() <= site.num_bytes + SLACK_BYTES


@pytest.mark.parametrize("mode", modes(is_long=False), ids=lambda mode: mode.name)
async def test_hostile_engine_harms_nobody(site, mode):
    await check_mode(site, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", modes(is_long=True), ids=lambda mode: mode.name)
async def test_hostile_engine_with_much_to_say_harms_nobody(site, mode):
    await check_mode(site, mode)


async def test_nothing_of_any_of_them_is_left(site):
    for name in ("requests_in_flight", "engine_requests_in_flight", "request_bytes"):
        await until(lambda name=name: is_zero(site, name))
    await until(lambda: is_zero(site, "queued_prompt_tokens"))
    await until(lambda: is_zero(site, "index_speculative_entries"))
    await until(lambda: has_as_many_tasks(site))
    await asyncio.to_thread(http_get, site.operations, "/livez")


async def is_zero(site, name):
    return await metric(site.operations, name) == 0


async def has_as_many_tasks(site):
    return await metric(site.operations, "tasks") <= site.num_tasks
