"""A router and fake engines, each a process of its own, and what must be true of them."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from examples.demo.services import http_get
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options
from tests.fakes.checked_stream import CheckedStream
from tests.fakes.engine_probe import cached_blocks, is_idle
from tests.fakes.service_process import HOST, ServiceProcess, fake_engine, free_ports, running

NUM_STREAMS = 64
NUM_TOKENS = 100
TIMEOUT = 60.0
ENGINE = ("--decode-step-seconds", "0.01", "--prefill-tokens-per-second", "100000")
ENGINE += ("--max-num-seqs", "256")


@dataclass
class Fleet:
    engines: list[ServiceProcess]
    router: ServiceProcess
    operations_port: int

    @asynccontextmanager
    async def client(self):
        """A channel of its own: one that lost a router waits before it looks for the next."""
        async with grpc.aio.insecure_channel(
            self.router.address, options=client_options()
        ) as channel:
            yield router_pb2_grpc.RouterServiceStub(channel)

    async def list_engines(self) -> dict[str, router_pb2.Engine]:
        async with self.client() as stub:
            request = router_pb2.ListEnginesRequest()
            listed = await stub.ListEngines(request, timeout=TIMEOUT, wait_for_ready=True)
        return {engine.address: engine for engine in listed.engines}

    async def wait_serving(self, *engines: ServiceProcess) -> None:
        """Waits until the router sends requests to exactly these."""
        wanted = {engine.address for engine in engines}

        async def are_serving():
            listed = (await self.list_engines()).values()
            return wanted == {
                e.address for e in listed if e.state == router_pb2.ENGINE_STATE_SERVING
            }

        await until(are_serving)

    async def wait_refused(self, engine: ServiceProcess, *texts: str) -> None:
        """Waits until the router lists an engine as unavailable, with all of these texts."""

        async def is_refused():
            listed = (await self.list_engines())[engine.address]
            is_unavailable = listed.state == router_pb2.ENGINE_STATE_UNAVAILABLE
            return is_unavailable and all(text in listed.detail for text in texts)

        await until(is_refused)

    async def metric(self, name: str, engine: str = "") -> float:
        """Returns the sum of a series, or that of one engine."""
        text = await asyncio.to_thread(http_get, f"{HOST}:{self.operations_port}", "/metrics")
        labels = rf'{{engine="{re.escape(engine)}"}}' if engine else r"(?:{[^}]*})?"
        found = re.findall(rf"^pagestream_router_{name}{labels} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    async def check_nothing_left(self, *engines: ServiceProcess) -> None:
        """Waits until no request, block or reservation of one is left, and the index is right."""
        for engine in engines:
            await until(lambda engine=engine: is_idle(engine.address))
        for name in ("requests_in_flight", "engine_requests_in_flight"):
            await until(lambda name=name: self._is_zero(name))
        # Reservations stay for two seconds after the first token.
        await until(lambda: self._is_zero("index_speculative_entries"))
        for engine in engines:
            await until(lambda engine=engine: self._is_index_right(engine.address))

    async def _is_zero(self, name: str) -> bool:
        return await self.metric(name) == 0

    async def _is_index_right(self, address: str) -> bool:
        num_indexed = await self.metric("engine_index_blocks", address)
        return num_indexed == len(await cached_blocks(address))


@asynccontextmanager
async def fleet_of(folder, *engine_options, router_options=(), is_started=True):
    """A router and one engine for each tuple of options; all of it is ended in the end."""
    *ports, port, operations_port = free_ports(len(engine_options) + 2)
    engines = [
        fake_engine(port, folder / f"engine-{number}.log", *ENGINE, *options)
        for number, (port, options) in enumerate(zip(ports, engine_options, strict=True))
    ]
    addresses = ",".join(engine.address for engine in engines)
    arguments = ["router", "--engines", addresses, "--port", str(port), *router_options]
    arguments += ["--operations-port", str(operations_port)]
    router = ServiceProcess(arguments, port, folder / "router.log")
    fleet = Fleet(engines, router, operations_port)
    async with running(*(engines if is_started else ()), router):
        try:
            if is_started:
                await fleet.wait_serving(*engines)
            yield fleet
        finally:
            for engine in engines:
                await engine.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what no process announces; gives up loudly."""
    async with asyncio.timeout(TIMEOUT):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def streams_of(count=NUM_STREAMS, model="") -> list[CheckedStream]:
    """Returns streams that share some prefixes; every other one is greedy."""
    return [
        CheckedStream([*range(i % 4, 40), i], NUM_TOKENS, float(i % 2), model) for i in range(count)
    ]


async def run_all(stub, streams, disturb=None) -> None:
    """Runs all streams to their ends, and `disturb` once a third of the tokens came."""
    is_under_way = asyncio.Event()

    def progress():
        if sum(len(stream.token_ids) for stream in streams) > len(streams) * NUM_TOKENS / 3:
            is_under_way.set()

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(stream.run(stub, TIMEOUT / 2, progress))
        if disturb is not None:
            await is_under_way.wait()
            assert not any(stream.is_ended for stream in streams)
            await disturb()


def check(streams) -> None:
    """Checks that every stream ended well, with exactly its tokens."""
    assert [stream.error for stream in streams if stream.error] == []
    assert [stream.fault for stream in streams if stream.fault] == []
