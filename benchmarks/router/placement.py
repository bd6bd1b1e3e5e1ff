"""Placement of a long prompt over many full engines, and what the event loop waits meanwhile.

    python -m benchmarks.router.placement --engines HOST:PORT,HOST:PORT --blocks 5000000

Runs a real fleet, connected to the engines of `cached_engines`, and prints JSON. Times are of the
processor, so that other work on the machine does not count.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any

from benchmarks.router.added_time import quantile
from benchmarks.router.cached_engines import prompt
from router.engines.fleet import Fleet
from router.launch import GC_THRESHOLDS
from router.request.dispatcher import Dispatcher, block_hashes
from router.request.failover import Failover
from router.request.retry_budget import RetryBudget
from router.types.engine_events import TokenRequest
from servicekit.garbage import collect_garbage_rarely

_NUM_PLACEMENTS = 500
_WAIT_SECONDS = 60.0


class StallMeter:
    """Watches how long the loop's thread works between two turns of the loop."""

    def __init__(self) -> None:
        self._longest = 0.0

    async def run(self) -> None:
        """Looks at each turn, until cancelled."""
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self._longest = max(self._longest, now - last)
            last = now

    def take(self) -> float:
        """Returns the longest so far in milliseconds, and starts anew."""
        longest, self._longest = self._longest, 0.0
        return round(1e3 * longest, 3)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _place(dispatcher: Dispatcher, num_prompts: int) -> dict[str, Any]:
    """Places prompts that the index has not seen since its snapshot; nothing is sent."""
    info = dispatcher.model_info("")
    rng = random.Random(0)
    spans: dict[str, list[float]] = {"hash": [], "match_cost_and_pick": [], "total": []}
    num_hits = 0
    for _ in range(_NUM_PLACEMENTS):
        request = TokenRequest(
            request_id="", model="", prompt_token_ids=prompt(rng.randrange(num_prompts))
        )
        failover = Failover(request, RetryBudget())
        start = time.thread_time()
        hashes = block_hashes(request, info)
        hashed = time.thread_time()
        placement = dispatcher.place(info, failover, hashes)
        end = time.thread_time()
        assert placement is not None, "all engines are connected"
        num_hits += placement.num_predicted_cached_tokens > 0
        for name, span in (
            ("hash", hashed - start),
            ("match_cost_and_pick", end - hashed),
            ("total", end - start),
        ):
            spans[name].append(span)
    return {
        "placements": _NUM_PLACEMENTS,
        "with_cached_tokens": num_hits,
        **{
            f"{name}_ms": {
                "median": round(1e3 * quantile(values, 0.5), 3),
                "p99": round(1e3 * quantile(values, 0.99), 3),
            }
            for name, values in spans.items()
        },
    }


async def _measure(addresses: list[str], num_blocks: int) -> dict[str, Any]:
    fleet, meter = Fleet(addresses), StallMeter()
    stalls: dict[str, float] = {}
    share = num_blocks // len(addresses)

    def num_indexed() -> int:
        return fleet.statistics().index.num_blocks

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(fleet.run()), tasks.create_task(meter.run())]
        start = time.monotonic()
        await _until(lambda: num_indexed() >= share * len(addresses))
        seconds = time.monotonic() - start
        stalls["snapshots_of_all_engines_ms"] = meter.take()
        indexed = num_indexed()
        placements = _place(Dispatcher(fleet), len(addresses))
        await asyncio.sleep(0.1)
        meter.take()
        fleet.set_addresses(addresses[1:])
        # Some of its blocks are held by its neighbours as well.
        await _until(lambda: num_indexed() < indexed - share // 2)
        stalls["removal_of_one_engine_ms"] = meter.take()
        remaining = num_indexed()
        fleet.set_addresses(addresses)
        await _until(lambda: num_indexed() > remaining + share // 2)
        stalls["snapshot_of_one_engine_that_is_back_ms"] = meter.take()
        fleet.set_addresses([])
        await _until(lambda: num_indexed() == 0)
        stalls["removal_of_all_engines_ms"] = meter.take()
        for task in running:
            task.cancel()
    return {
        "engines": len(addresses),
        "indexed_blocks": indexed,
        "seconds_to_index_all": round(seconds, 1),
        "prompt_tokens": len(prompt(0)),
        "placement": placements,
        "longest_event_loop_stall": stalls,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", required=True)
    parser.add_argument("--blocks", type=int, required=True)
    options = parser.parse_args()
    # As a router does: else the longest turn is a search through all that was imported.
    collect_garbage_rarely(*GC_THRESHOLDS)
    print(json.dumps(asyncio.run(_measure(options.engines.split(","), options.blocks))))
