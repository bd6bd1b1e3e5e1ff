"""Streams through one router for minutes while its engines are killed, stopped and restarted.

    python -m benchmarks.router.soak --minutes 10

Four fake engines, each a process whose tokens are hashes of all tokens before them, so that a lost,
repeated or misplaced token shows. Every few seconds one of them is killed, asked to exit, or
stopped and continued later; it comes back on its port. Half of the streams are greedy, the others
draw with a seed of the engine's choice. The exit code is 1 if a stream ended wrong or the router
grew.
"""

import argparse
import asyncio
import random
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from examples.demo.load import describe, wait_for_engines
from examples.demo.services import HOST, Service, Services, http_get
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options
from tests.fakes.fake_engine import expected_tokens

_ROOT = Path(__file__).resolve().parents[2]
_NUM_ENGINES = 4
_ENGINE = ["tests.fakes.fake_engine", "--decode-step-seconds", "0.02"]
_ENGINE += ["--prefill-tokens-per-second", "200000", "--max-num-seqs", "256"]
_STOPPED_SECONDS = 8.0
"""More than the router waits for a silent engine."""
_MAX_GROWTH = 1.2
"""Of the router's memory, from the end of the warm-up to the end."""
_CALL_TIMEOUT = 120.0


@dataclass(slots=True)
class Record:
    """What the streams saw.

    Attributes:
        num_streams: Streams that ended, well or not.
        num_tokens: Tokens of all of them.
        faults: What was wrong with a stream, and how often.
        disturbances: What was done to engines, and how often.
        memory: Router's resident bytes, one value every few seconds.
    """

    num_streams: int = 0
    num_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)


class Engines:
    """The fake engines' processes, each of which can be replaced on its port."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, ports: list[int]) -> None:
        """Starts one engine on each port."""
        self.ports = ports
        self.processes = [await self._start(port) for port in ports]

    async def disturb(self, number: int, how: str) -> None:
        """Ends or stops one engine, and brings it back."""
        process = self.processes[number]
        if how == "stopped":
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_SECONDS)
            process.send_signal(signal.SIGCONT)
            return
        process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        await process.wait()
        self.processes[number] = await self._start(self.ports[number])

    async def stop(self) -> None:
        """Ends all."""
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()

    async def _start(self, port: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *_ENGINE, "--port", str(port)),
            cwd=_ROOT,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )


async def _stream(stub: router_pb2_grpc.RouterServiceStub, rng: random.Random) -> tuple[int, str]:
    """Runs one stream; returns its tokens' count and what was wrong with it."""
    prompt = [rng.randrange(50) for _ in range(rng.choice((8, 64, 512)))]
    num_tokens = rng.choice((20, 100, 300))
    temperature = rng.choice((0.0, 1.0))
    request = router_pb2.GenerateRequest(
        token_ids=router_pb2.TokenIds(ids=prompt),
        sampling_params=router_pb2.SamplingParams(temperature=temperature, max_tokens=num_tokens),
    )
    received: list[int] = []
    seeds: list[int] = []
    count = -1
    try:
        async for response in stub.Generate(request, timeout=_CALL_TIMEOUT):
            if response.HasField("admission"):
                seeds.append(response.admission.seed)
            received += response.token_ids
            if response.HasField("finish"):
                count = response.finish.completion_token_count
    except grpc.aio.AioRpcError as error:
        return len(received), re.sub(r"[0-9.]+", "#", describe(error))
    if len(seeds) != 1:
        return len(received), f"{len(seeds)} admissions"
    if received != expected_tokens(prompt, num_tokens, seed=seeds[0] if temperature else 0):
        return len(received), "wrong tokens"
    return len(received), "" if count == num_tokens else "wrong usage"


async def _run_streams(
    address: str, record: Record, num_streams: int, deadline: float, seed: int
) -> None:
    async def client(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        while time.monotonic() < deadline:
            num_tokens, fault = await _stream(stub, rng)
            record.num_streams += 1
            record.num_tokens += num_tokens
            if fault:
                record.faults[fault] += 1
                # A refusal would otherwise be repeated at once.
                await asyncio.sleep(0.1)

    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
        async with asyncio.TaskGroup() as group:
            for number in range(num_streams):
                group.create_task(client(number))


async def _disturb(engines: Engines, record: Record, seed: int) -> None:
    """Disturbs one engine after the other, so that others are there to go on."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.uniform(1.0, 5.0))
        how = rng.choice(("killed", "stopped", "asked to exit"))
        record.disturbances[how] += 1
        await engines.disturb(rng.randrange(_NUM_ENGINES), how)


def _metric(router: Service, name: str) -> float:
    text = http_get(router.operations_address, "/metrics")
    values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


async def _watch(router: Service, record: Record) -> None:
    while True:
        record.memory.append(int(_metric(router, "process_resident_memory_bytes")))
        await asyncio.sleep(2.0)


async def _soak(minutes: float, num_streams: int, seed: int) -> Record:
    record = Record()
    engines = Engines()
    async with Services(_ROOT / ".demo" / "soak") as services:
        try:
            await engines.start(services.free_ports(_NUM_ENGINES))
            addresses = ",".join(f"{HOST}:{port}" for port in engines.ports)
            router = services.start("router", ["router", "--engines", addresses])
            await services.wait_ready([router], 60.0, lambda service, state: None)
            await wait_for_engines(router.address, _NUM_ENGINES)
            deadline = time.monotonic() + 60 * minutes
            async with asyncio.TaskGroup() as group:
                others = [
                    group.create_task(_disturb(engines, record, seed)),
                    group.create_task(_watch(router, record)),
                ]
                await _run_streams(router.address, record, num_streams, deadline, seed)
                for task in others:
                    task.cancel()
            _report(router, record)
        finally:
            await engines.stop()
    return record


def _report(router: Service, record: Record) -> None:
    for how, count in sorted(record.disturbances.items()):
        print(f"engines {how}: {count}")
    for name in ("retries", "failovers", "resumed_tokens"):
        print(f"{name}: {_metric(router, f'pagestream_router_{name}_total'):,.0f}")
    print(f"streams: {record.num_streams:,} with {record.num_tokens:,} tokens")
    left = _metric(router, "pagestream_router_requests_in_flight")
    left += _metric(router, "pagestream_router_engine_requests_in_flight")
    print(f"requests left in the router: {left:.0f}")
    if left:
        record.faults["requests left in the router"] += 1
    print(f"growth after the warm-up: {growth(record.memory):.2f} of {record.memory[-1] >> 20} MiB")
    if growth(record.memory) > _MAX_GROWTH:
        record.faults["the router grew"] += 1
    for fault, count in record.faults.most_common():
        print(f"FAULT {count} times: {fault}")


def growth(values: list[int]) -> float:
    """Returns the mean of the last fifth over that of the second, the first being warm-up."""
    size = max(1, len(values) // 5)
    before, after = values[size : 2 * size] or values, values[-size:]
    return (sum(after) / len(after)) / (sum(before) / len(before))


def main() -> int:
    """Soaks as the arguments say; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router.soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=200, help="at the same time (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return 1 if asyncio.run(_soak(given.minutes, given.streams, given.seed)).faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
