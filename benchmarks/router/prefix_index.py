"""Times the prefix index at full size: `python -m benchmarks.router.prefix_index`.

A separate process indexes the snapshots of all engines and then the changes that occur in service,
and prints JSON. Times are CPU times of single calls, during which an event loop would be blocked;
other work on the machine does not count. Prompts are generated again from their numbers when
needed, so that the memory measured is that of the index.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import time
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from router.placement.prefix_index import PrefixIndex
from router.types.engine_state import CacheUpdate

PROMPT_BLOCKS = 2048
"""A prompt of 32,768 tokens in blocks of 16."""
MAX_MESSAGE_BLOCKS = 1 << 14
"""As engines cut their snapshots."""
SHARE_EVERY = 8
"""Each such prompt is held, to some depth, by `NUM_SHARING` more engines."""
NUM_SHARING = 4
NUM_DELTAS = 20_000
DELTA_BLOCKS = 64
NUM_MATCHES = 2000


class Clock:
    """Collects the durations of calls."""

    def __init__(self) -> None:
        self.seconds = array("d")

    def time(self, call: Iterable[Any]) -> None:
        """Runs an iterable to its end; each iteration is a call of its own."""
        iterator = iter(call)
        end = object()
        while True:
            start = time.thread_time()
            result = next(iterator, end)
            self.seconds.append(time.thread_time() - start)
            if result is end:
                return

    def milliseconds(self) -> dict[str, float]:
        """Returns median, 99th percentile and longest of the calls, and their number."""
        ordered = sorted(self.seconds)
        return {
            "calls": len(ordered),
            "p50_ms": round(1e3 * ordered[len(ordered) // 2], 4),
            "p99_ms": round(1e3 * ordered[len(ordered) * 99 // 100], 4),
            "max_ms": round(1e3 * ordered[-1], 4),
            "total_s": round(sum(ordered), 3),
        }


def prompt(number: int) -> "array[int]":
    """Returns the hashes of a prompt's blocks."""
    return array("Q", random.Random(number).randbytes(8 * PROMPT_BLOCKS))


class Fleet:
    """What each engine holds.

    Args:
        num_engines: Engines.
        num_blocks: Distinct blocks on all of them together, rounded to whole prompts.
    """

    def __init__(self, num_engines: int, num_blocks: int) -> None:
        self.num_engines = num_engines
        self.num_prompts = num_blocks // PROMPT_BLOCKS
        self._sharers: dict[int, list[tuple[int, int]]] = {}
        rng = random.Random(0)
        for number in range(0, self.num_prompts, SHARE_EVERY):
            for engine in rng.sample(range(num_engines), min(NUM_SHARING, num_engines)):
                depth = rng.randint(1, PROMPT_BLOCKS)
                self._sharers.setdefault(engine, []).append((number, depth))

    def blocks(self, engine: int) -> "array[int]":
        """Returns the hashes of the blocks that an engine holds."""
        held = array("Q")
        for number in range(engine, self.num_prompts, self.num_engines):
            held += prompt(number)
        for number, depth in self._sharers.get(engine, []):
            held += prompt(number)[:depth]
        return held

    def snapshot(self, engine: int, epoch: int = 1) -> Iterator[CacheUpdate]:
        """Yields the messages of an engine's snapshot."""
        held = self.blocks(engine)
        starts = range(0, len(held), MAX_MESSAGE_BLOCKS)
        for start in starts:
            yield CacheUpdate(
                epoch=epoch,
                sequence_number=0,
                stored=held[start : start + MAX_MESSAGE_BLOCKS],
                is_snapshot=True,
                is_first=start == 0,
                is_last=start == starts[-1],
            )


def resident_mb() -> float:
    """Returns the memory of this process, in 10^6 bytes."""
    with open("/proc/self/statm") as file:
        return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def build(index: PrefixIndex, fleet: Fleet) -> Clock:
    """Enters all engines by their snapshots."""
    clock = Clock()
    for engine in range(fleet.num_engines):
        index.add_engine(str(engine), max_blocks=10**9, epoch=1)
        for update in fleet.snapshot(engine):
            clock.time(index.apply_in_slices(str(engine), update))
    return clock


def deltas(index: PrefixIndex, fleet: Fleet) -> Clock:
    """Lets engines replace blocks, oldest first."""
    clock = Clock()
    rng = random.Random(1)
    held = [fleet.blocks(engine) for engine in range(2)]
    for number in range(1, NUM_DELTAS + 1):
        for engine in range(2):
            start = number * DELTA_BLOCKS % (len(held[engine]) - DELTA_BLOCKS)
            oldest = slice(start, start + DELTA_BLOCKS)
            stored = array("Q", rng.randbytes(8 * DELTA_BLOCKS))
            update = CacheUpdate(
                epoch=1, sequence_number=number, stored=stored, removed=held[engine][oldest]
            )
            held[engine][oldest] = stored
            clock.time(index.apply_in_slices(str(engine), update))
    return clock


def matches(index: PrefixIndex, numbers: Iterable[int]) -> Clock:
    """Looks prompts up, each for the first time since it was entered."""
    clock = Clock()
    for number in numbers:
        hashes = prompt(number).tolist()
        start = time.thread_time()
        index.match(hashes)
        clock.seconds.append(time.thread_time() - start)
    return clock


def measure(num_engines: int, num_blocks: int) -> None:
    """Runs all measurements in this process and prints them."""
    base_mb = resident_mb()
    index, fleet = PrefixIndex(), Fleet(num_engines, num_blocks)
    results: dict[str, Any] = {"engines": num_engines, "python": platform.python_version()}

    clock = build(index, fleet)
    statistics = index.statistics()
    results["blocks"] = statistics.num_blocks
    results["entries"] = statistics.num_entries
    results["memory"] = {
        "process_without_index_mb": base_mb,
        "process_mb": resident_mb(),
        "told_by_index_mb": round(statistics.num_bytes / 1e6, 1),
    }
    results["build"] = clock.milliseconds()
    results["build"]["entries_per_s"] = round(statistics.num_entries / sum(clock.seconds))

    shared = range(0, fleet.num_prompts, SHARE_EVERY)
    rng = random.Random(2)
    numbers = [rng.choice(shared) for _ in range(NUM_MATCHES)]
    results["match_of_prompt_on_several_engines"] = matches(index, numbers).milliseconds()
    reserving, releasing = Clock(), Clock()
    reservations = []
    for number in numbers[:200]:
        hashes = prompt(number).tolist()
        start = time.thread_time()
        reservations.append(index.reserve(str(number % 8), hashes))
        reserving.seconds.append(time.thread_time() - start)
    results["reserve"] = reserving.milliseconds()
    results["match_with_reservations"] = matches(index, numbers).milliseconds()
    for reservation in reservations:
        start = time.thread_time()
        index.release(reservation)
        releasing.seconds.append(time.thread_time() - start)
    results["release"] = releasing.milliseconds()

    results["delta"] = deltas(index, fleet).milliseconds()
    clock = Clock()
    start = time.thread_time()
    index.remove_engine("3")
    clock.seconds.append(time.thread_time() - start)
    results["remove_engine"] = clock.milliseconds()
    clock = Clock()
    clock.time(iter(index.sweep, False))
    results["sweep_of_one_engine"] = clock.milliseconds()
    results["memory"]["process_after_deltas_mb"] = resident_mb()

    clock = Clock()
    index.add_engine("4", max_blocks=10**9, epoch=2)
    for update in fleet.snapshot(4, epoch=2):
        clock.time(index.apply_in_slices("4", update))
    results["restart_of_one_engine"] = clock.milliseconds()

    clock = Clock()
    for engine in range(num_engines):
        index.remove_engine(str(engine))
    clock.time(iter(index.sweep, False))
    results["sweep_of_all_engines"] = clock.milliseconds()
    results["memory"]["process_when_all_are_swept_mb"] = resident_mb()
    print(json.dumps(results, indent=2))


def main() -> None:
    """Measures in a fresh process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router.prefix_index", description=__doc__
    )
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=5_000_000)
    arguments = parser.parse_args()
    process = multiprocessing.get_context("spawn").Process(
        target=measure, args=(arguments.engines, arguments.blocks)
    )
    process.start()
    process.join()
    raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
