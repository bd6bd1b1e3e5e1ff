"""A rank of an engine is killed or stopped under load, and no client sees a seam.

The engine that goes on has a single rank: engines of any number of ranks serve one model together.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.system.fleets import fleet_of
from tests.system.test_failover import check, real_engine, run_all

RANKS = ("--tensor-parallel-size", "2", "--core-silence-seconds", "2")
RANKS += ("--frozen-core-exit-seconds", "1")


def spawned(pid: int) -> list[int]:
    """Returns the processes of ours that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    pids = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="stopped", marks=pytest.mark.slow),
    ],
)
async def test_streams_of_an_engine_whose_rank_is_lost_go_on(undisturbed, tmp_path, number):
    async with fleet_of(tmp_path, RANKS, (), make_engine=real_engine) as fleet:
        victim, survivor = fleet.engines

        async def disturb():
            [core] = spawned(victim.pid)
            [rank] = spawned(core)
            os.kill(rank, number)

        check(await run_all(fleet, disturb), undisturbed)
        assert await fleet.metric("failovers_total") > 0
        assert await fleet.metric("resumed_tokens_total") > 0
        assert await victim.wait() == 1
        await fleet.check_nothing_left(survivor)


@pytest.mark.slow
async def test_two_engines_of_ranks_on_one_host_do_not_meet(undisturbed, tmp_path):
    async with fleet_of(tmp_path, RANKS, RANKS, make_engine=real_engine) as fleet:
        check(await run_all(fleet), undisturbed)
        await fleet.check_nothing_left(*fleet.engines)
