"""Streams through one router for minutes while its engines are killed, stopped and restarted.

    python -m benchmarks.router.soak --minutes 10

Four fake engines, each a process whose tokens are hashes of all tokens before them, so that a lost,
repeated or misplaced token shows. Every few seconds one of them is killed, asked to exit, or
stopped and continued later; it comes back on its port. Half of the streams are greedy, the others
draw with a seed of the engine's choice; a tenth is cancelled by its client on the way.

When the streams have ended, nothing may be left of them, in the router or in an engine; and when
all engines but one leave the list, nothing of those in the index. The exit code is 1 if a stream
ended wrong, the router grew, or something is left. The figures go to a JSON file.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import grpc

from benchmarks.provenance import commit, cpus
from examples.demo.load import describe, wait_for_engines
from examples.demo.services import Service, Services, http_get
from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire.channel import client_options
from tests.fakes.checked_stream import CheckedStream
from tests.fakes.engine_probe import cached_blocks, is_idle
from tests.fakes.service_process import ServiceProcess, fake_engine, running

_ROOT = Path(__file__).resolve().parents[2]
_OUTPUT = Path("benchmarks/results/router_soak.json")
_NUM_ENGINES = 4
_ENGINE = ("--decode-step-seconds", "0.02", "--prefill-tokens-per-second", "200000")
# Blocks for all streams at once: a request that waits behind others for seconds may meet two deaths
# in a row without a token, and then rightly fails.
_ENGINE += ("--max-num-seqs", "256", "--num-blocks", "8192")
_STOPPED_SECONDS = 8.0
"""More than the router waits for a silent engine."""
_CANCELLED_SHARE = 0.1
_MAX_GROWTH = 1.2
"""Of the router's memory and tasks, from the end of the warm-up to the end."""
_CALL_SECONDS = 120.0
_SETTLE_SECONDS = 90.0
"""What all has to settle in when the streams have ended: engines that stalled rest for a minute."""


@dataclass(slots=True)
class Record:
    """What the streams saw.

    Attributes:
        num_streams: Streams that ended, well or not.
        num_cancelled: Those of them that their client cancelled.
        num_tokens: Tokens of all of them.
        faults: What was wrong with a stream or is left, and how often.
        disturbances: What was done to engines, and how often.
        memory_bytes: Router's resident bytes, one value every two seconds.
        num_tasks: Router's asyncio tasks, likewise.
        counters: Of the router, at the end.
        left: What was there before the first stream and after the last, by its name.
    """

    num_streams: int = 0
    num_cancelled: int = 0
    num_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    memory_bytes: list[int] = field(default_factory=list)
    num_tasks: list[int] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    left: dict[str, tuple[float, float]] = field(default_factory=dict)


class _GaveUp(Exception):
    """The client wants no more of a stream."""


async def _stream(stub: router_pb2_grpc.RouterServiceStub, rng: random.Random) -> tuple[int, str]:
    """Runs one stream; returns its tokens' count and what was wrong with it, or "cancelled"."""
    prompt = [rng.randrange(50) for _ in range(rng.choice((8, 64, 512)))]
    num_tokens = rng.choice((20, 100, 300))
    stream = CheckedStream(prompt, num_tokens, rng.choice((0.0, 1.0)))
    bound = rng.randrange(num_tokens) if rng.random() < _CANCELLED_SHARE else num_tokens

    def progress() -> None:
        if bound < len(stream.token_ids) < num_tokens:
            raise _GaveUp

    try:
        await stream.run(stub, _CALL_SECONDS, progress)
    except _GaveUp:
        return len(stream.token_ids), stream.fault_so_far or "cancelled"
    if stream.error is not None:
        return len(stream.token_ids), re.sub(r"[0-9.]+", "#", describe(stream.error))
    return len(stream.token_ids), stream.fault


async def _run_streams(
    address: str, record: Record, num_streams: int, deadline: float, seed: int
) -> None:
    async def client(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        while time.monotonic() < deadline:
            num_tokens, fault = await _stream(stub, rng)
            record.num_streams += 1
            record.num_tokens += num_tokens
            if fault == "cancelled":
                record.num_cancelled += 1
            elif fault:
                record.faults[fault] += 1
                # A refusal would otherwise be repeated at once.
                await asyncio.sleep(0.1)

    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
        async with asyncio.TaskGroup() as group:
            for number in range(num_streams):
                group.create_task(client(number))


async def _disturb(
    engines: list[ServiceProcess], record: Record, deadline: float, seed: int
) -> None:
    """Disturbs one engine after the other, so that others are there to go on."""
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        await asyncio.sleep(rng.uniform(1.0, 5.0))
        how = rng.choice(("killed", "stopped", "asked to exit"))
        record.disturbances[how] += 1
        engine = rng.choice(engines)
        if how == "stopped":
            engine.send_signal(signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_SECONDS)
            engine.send_signal(signal.SIGCONT)
        else:
            await engine.end(signal.SIGKILL if how == "killed" else signal.SIGTERM)
            await engine.start()


async def _metric(router: Service, name: str) -> float:
    text = await asyncio.to_thread(http_get, router.operations_address, "/metrics")
    values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


async def _ours(router: Service, name: str) -> float:
    return await _metric(router, f"pagestream_router_{name}")


async def _watch(router: Service, record: Record) -> None:
    while True:
        record.memory_bytes.append(int(await _metric(router, "process_resident_memory_bytes")))
        record.num_tasks.append(int(await _ours(router, "tasks")))
        await asyncio.sleep(2.0)


async def _soak(minutes: float, num_streams: int, seed: int) -> Record:
    record = Record()
    folder = _ROOT / ".demo" / "soak"
    async with Services(folder) as services:
        engines = [
            fake_engine(port, folder / f"engine-{port}.log", *_ENGINE)
            for port in services.free_ports(_NUM_ENGINES)
        ]
        listed = folder / "engines"
        listed.write_text("".join(f"{engine.address}\n" for engine in engines))
        async with running(*engines):
            router = services.start("router", ["router", "--engines-file", str(listed)])
            await services.wait_ready([router], 60.0, lambda service, state: None)
            await wait_for_engines(router.address, _NUM_ENGINES)
            num_tasks = await _ours(router, "tasks")
            deadline = time.monotonic() + 60 * minutes
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(router, record))
                disturb = group.create_task(_disturb(engines, record, deadline, seed))
                await _run_streams(router.address, record, num_streams, deadline, seed)
                await disturb
                watch.cancel()
            await _check_left(router, engines, num_tasks, record)
            listed.write_text(f"{engines[0].address}\n")
            await _check_gone(router, engines[0], record)
            for name in ("retries", "failovers", "resumed_tokens", "index_gaps"):
                record.counters[name] = int(await _ours(router, f"{name}_total"))
    return record


async def _check_left(
    router: Service, engines: list[ServiceProcess], num_tasks: float, record: Record
) -> None:
    """Waits until all is as it was before the first stream."""

    async def num_busy() -> float:
        # With nothing under way the router's series say so themselves, hence this asks engines.
        return sum([not await is_idle(engine.address) for engine in engines])

    async def num_blocks_amiss() -> float:
        held = [len(await cached_blocks(engine.address)) for engine in engines]
        return abs(sum(held) - await _ours(router, "engine_index_blocks"))

    async def of(name: str) -> float:
        return await _ours(router, name)

    await _settle("engines that serve", _NUM_ENGINES, lambda: of("engine_serving"), record)
    for name in ("requests_in_flight", "engine_requests_in_flight", "index_speculative_entries"):
        await _settle(f"{name} of the router", 0, lambda name=name: of(name), record)
    await _settle("engines with requests or blocks in use", 0, num_busy, record)
    await _settle("indexed blocks that engines do not hold", 0, num_blocks_amiss, record)
    await _settle("tasks of the router", num_tasks, lambda: of("tasks"), record)


async def _check_gone(router: Service, kept: ServiceProcess, record: Record) -> None:
    """Waits until the index holds nothing but what the only engine holds that is still listed."""
    num_kept = len(await cached_blocks(kept.address))
    await _settle(
        "indexed blocks without the engines that left",
        num_kept,
        lambda: _ours(router, "index_blocks"),
        record,
    )


async def _settle(
    name: str, before: float, measure: Callable[[], Awaitable[float]], record: Record
) -> None:
    """Waits until a figure is what it was before; a fault if it does not become so."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (now := await measure()) != before and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.25)
    record.left[name] = (before, now)
    if now != before:
        record.faults[f"{name}: {now:g} instead of {before:g}"] += 1


def _report(record: Record) -> None:
    for how, count in sorted(record.disturbances.items()):
        print(f"engines {how}: {count}")
    for name, value in record.counters.items():
        print(f"{name}: {value:,}")
    print(
        f"streams: {record.num_streams:,} with {record.num_tokens:,} tokens, "
        f"{record.num_cancelled:,} of them cancelled"
    )
    for name, (before, now) in record.left.items():
        print(f"{name}: {before:g} before, {now:g} after")
    for what, values, unit in (
        ("memory", record.memory_bytes, f"{record.memory_bytes[-1] >> 20} MiB"),
        ("tasks", record.num_tasks, f"{record.num_tasks[-1]}"),
    ):
        print(f"growth of the router's {what} after the warm-up: {growth(values):.2f} to {unit}")
        if growth(values) > _MAX_GROWTH:
            record.faults[f"the router's {what} grew"] += 1
    for fault, count in record.faults.most_common():
        print(f"FAULT {count} times: {fault}")


def growth(values: list[int]) -> float:
    """Returns the mean of the last fifth over that of the second, the first being warm-up."""
    size = max(1, len(values) // 5)
    before, after = values[size : 2 * size] or values, values[-size:]
    return (sum(after) / len(after)) / (sum(before) / len(before))


def _write(output: Path, arguments: argparse.Namespace, record: Record) -> None:
    figures = {item.name: getattr(record, item.name) for item in fields(record)}
    result = {
        "command": f"python -m benchmarks.router.soak --minutes {arguments.minutes:g} "
        f"--streams {arguments.streams} --seed {arguments.seed}",
        "commit": commit(),
        "machine": cpus() | {"grpcio": grpc.__version__},
        **figures,
        "memory_growth": round(growth(record.memory_bytes), 3),
        "tasks_growth": round(growth(record.num_tasks), 3),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result) + "\n")


def main() -> int:
    """Soaks as the arguments say; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router.soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--streams", type=int, default=200, help="streams at the same time (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_OUTPUT, metavar="FILE")
    arguments = parser.parse_args()
    record = asyncio.run(_soak(arguments.minutes, arguments.streams, arguments.seed))
    _report(record)
    _write(arguments.output, arguments, record)
    return 1 if record.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
