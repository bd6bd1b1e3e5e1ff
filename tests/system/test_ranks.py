"""Engines of ranks as an operator sees them: their metrics, and the end of a rank under load.

No client sees a seam. The engine that goes on has a single rank: engines of any number of ranks
serve one model together.
"""

import asyncio
import os
import re
import signal
from pathlib import Path

import grpc
import pytest

from examples.demo.services import http_get
from tests.engine_service.process_harness import REAL, engine_process
from tests.engine_service.server.harness import generate_request, read
from tests.fakes.service_process import HOST
from tests.system.fleets import fleet_of
from tests.system.test_failover import ENGINE, TIMEOUT, check, real_engine, run_all

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
            # Of the service's processes, only the core has some of its own.
            [rank] = [rank for child in spawned(victim.pid) for rank in spawned(child)]
            os.kill(rank, number)

        check(await run_all(fleet, disturb), undisturbed)
        assert await fleet.metric("failovers_total") > 0
        assert await fleet.metric("resumed_tokens_total") > 0
        assert await victim.wait() == 1
        await fleet.check_nothing_left(survivor)


async def test_engine_shows_the_series_of_each_of_its_ranks():
    num_tokens = 30
    expected = dict.fromkeys("01", num_tokens)

    async with engine_process(REAL, *ENGINE[1:], *RANKS) as engine:
        await engine.wait_line("ready")
        operations = f"{HOST}:{engine.operations_port}"

        async def series(name):
            text = await asyncio.to_thread(http_get, operations, "/metrics")
            pattern = rf'^pagestream_engine_{name}{{model_name="[^"]+",rank="(\d)"}} (\S+)$'
            return {rank: float(x) for rank, x in re.findall(pattern, text, re.MULTILINE)}

        async with engine.stub() as stub:
            call = stub.Generate(generate_request(1, max_tokens=num_tokens, ignore_eos=True))
            while await read(call) is not grpc.aio.EOF:
                pass
        async with asyncio.timeout(TIMEOUT):
            steps = await series("rank_steps_total")
            while steps != expected:
                await asyncio.sleep(0.05)
                steps = await series("rank_steps_total")
        for name in ("step_lag_seconds_total", "collective_seconds_total", "memory_bytes"):
            found = await series(f"rank_{name}")
            assert sorted(found) == ["0", "1"]
            assert min(found.values()) > 0


@pytest.mark.slow
async def test_two_engines_of_ranks_on_one_host_do_not_meet(undisturbed, tmp_path):
    async with fleet_of(tmp_path, RANKS, RANKS, make_engine=real_engine) as fleet:
        check(await run_all(fleet), undisturbed)
        await fleet.check_nothing_left(*fleet.engines)
