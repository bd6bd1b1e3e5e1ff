"""A router and fake engines, each a process of its own, and what must be true of them."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
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
    operations: str
    """Address of the router's metrics."""
    num_tasks: float = 0.0
    """Of the router, when it had no request."""

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

    async def metric(self, name: str, **labels: str) -> float:
        """Returns what `metric` does, of this router."""
        return await metric(self.operations, name, **labels)

    async def note_tasks(self) -> None:
        """Keeps how many tasks the router has, which has no request."""
        self.num_tasks = await tasks_at_rest(self.operations)

    async def check_nothing_left(self, *engines: ServiceProcess) -> None:
        """Checks what `check_nothing_left` does; these are all engines that run."""
        addresses = [engine.address for engine in engines]
        await check_nothing_left(self.operations, addresses, self.num_tasks)


def quick_engine(port, log_path, *options) -> ServiceProcess:
    """Returns a fake engine, not started."""
    return fake_engine(port, log_path, *ENGINE, *options)


@asynccontextmanager
async def fleet_of(
    folder, *engine_options, make_engine=quick_engine, router_options=(), is_started=True
):
    """A router and one engine for each tuple of options; all of it is ended in the end."""
    *ports, port, operations_port = free_ports(len(engine_options) + 2)
    engines = [
        make_engine(port, folder / f"engine-{number}.log", *options)
        for number, (port, options) in enumerate(zip(ports, engine_options, strict=True))
    ]
    addresses = ",".join(engine.address for engine in engines)
    arguments = ["router", "--engines", addresses, "--port", str(port), *router_options]
    arguments += ["--operations-port", str(operations_port)]
    router = ServiceProcess(arguments, port, folder / "router.log")
    fleet = Fleet(engines, router, f"{HOST}:{operations_port}")
    async with running(*(engines if is_started else ()), router):
        try:
            if is_started:
                await fleet.wait_serving(*engines)
                await fleet.note_tasks()
            yield fleet
        finally:
            for engine in engines:
                await engine.close()


async def metric(operations: str, name: str, **labels: str) -> float:
    """Returns the sum of a series of the router, or of those that have a label.

    Args:
        operations: Where the router shows its metrics.
        name: Without the part that all have.
        labels: One label or none.
    """
    text = await asyncio.to_thread(http_get, operations, "/metrics")
    chosen = "".join(f'{key}="{re.escape(value)}"' for key, value in labels.items())
    pattern = rf"{{(?:[^}}]*,)?{chosen}(?:,[^}}]*)?}}" if labels else r"(?:{[^}]*})?"
    found = re.findall(rf"^pagestream_router_{name}{pattern} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


async def tasks_at_rest(operations: str) -> float:
    """Returns the asyncio tasks of a router without a request, once two scrapes agree."""
    num_tasks = -1.0
    async with asyncio.timeout(TIMEOUT):
        while (found := await metric(operations, "tasks")) != num_tasks:
            num_tasks = found
    return num_tasks


async def check_nothing_left(operations: str, engines: Sequence[str], num_tasks: float) -> None:
    """Waits until nothing of any request is left in the router or in an engine.

    No task, request, block or reservation is, and the index has what the engines hold and no more.

    Args:
        operations: Where the router shows its metrics.
        engines: The addresses of all engines that run.
        num_tasks: What the router had with these engines before the first request.
    """

    async def is_zero(name):
        return await metric(operations, name) == 0

    async def is_index_right():
        held = [await cached_blocks(address) for address in engines]
        indexed = [
            await metric(operations, "engine_index_blocks", engine=address) for address in engines
        ]
        num_blocks = await metric(operations, "index_blocks")
        return indexed == list(map(len, held)) and num_blocks == len(set().union(*held))

    async def has_as_many_tasks():
        assert num_tasks > 0
        return await metric(operations, "tasks") <= num_tasks

    for address in engines:
        await until(lambda address=address: is_idle(address))
    # Reservations, which come last, stay for two seconds after the first token.
    for name in (
        "requests_in_flight",
        "engine_requests_in_flight",
        "request_bytes",
        "queued_prompt_tokens",
        "index_speculative_entries",
    ):
        await until(lambda name=name: is_zero(name))
    await until(is_index_right)
    await until(has_as_many_tasks)


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
    """Runs all streams, and `disturb` once each has tokens and all together a third of theirs."""
    is_under_way = asyncio.Event()

    def progress():
        counts = [len(stream.token_ids) for stream in streams]
        if all(counts) and sum(counts) > len(streams) * NUM_TOKENS / 3:
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
    errors = [str(stream.error) for stream in streams if stream.error]
    assert not errors, errors
    assert [stream.fault for stream in streams if stream.fault] == []
