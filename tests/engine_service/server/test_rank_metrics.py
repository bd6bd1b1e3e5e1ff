"""The series of an engine's ranks."""

import asyncio

import pytest

from engine_service.core.types import StepStats
from tests.engine_service.core.fake_executor import make_rank_stats
from tests.engine_service.server.harness import WAIT_SECONDS, running_engine

TOTALS = {
    "rank_steps_total": "num_steps",
    "rank_step_lag_seconds_total": "lag_seconds",
    "rank_collective_seconds_total": "collective_seconds",
    "rank_memory_bytes": "memory_bytes",
}


async def series(engine, rank):
    return {
        field: await engine.metric(f'{name}{{rank="{rank}"}}') for name, field in TOTALS.items()
    }


async def send(engine, *reports):
    """Sends them with a step, and waits until the server has taken in that step."""
    before = await engine.metric("generated_tokens_total")
    engine.core.step(rank_stats=reports, stats=StepStats(num_generated_tokens=1))
    async with asyncio.timeout(WAIT_SECONDS):
        while await engine.metric("generated_tokens_total") == before:
            pass


async def test_totals_are_those_that_each_rank_reported_last():
    async with running_engine() as engine:
        await send(
            engine,
            make_rank_stats(rank=0, num_steps=5),
            make_rank_stats(rank=1, num_steps=4),
            make_rank_stats(rank=1, num_steps=6, lag_seconds=1.5, memory_bytes=70),
        )

        assert (await series(engine, 0))["num_steps"] == 5
        assert await series(engine, 1) == {
            "num_steps": 6,
            "lag_seconds": 1.5,
            "collective_seconds": 2.0,
            "memory_bytes": 70,
        }


async def test_total_that_shrinks_is_ignored_and_the_engine_goes_on():
    async with running_engine() as engine:
        await send(
            engine,
            make_rank_stats(num_steps=9, memory_bytes=50),
            make_rank_stats(num_steps=3, memory_bytes=40),
        )

        found = await series(engine, 1)
        assert (found["num_steps"], found["memory_bytes"]) == (9, 40)


async def test_unknown_time_in_collectives_has_no_series():
    async with running_engine() as engine:
        await send(engine, make_rank_stats(collective_seconds=None))

        assert await engine.metric('rank_steps_total{rank="1"}') == 7
        with pytest.raises(KeyError):
            await engine.metric('rank_collective_seconds_total{rank="1"}')


async def test_engine_of_a_single_rank_has_no_series_of_ranks():
    async with running_engine() as engine:
        await send(engine)

        _, text = await engine.http("/metrics")
        assert not [line for line in text.splitlines() if line.startswith("pagestream_engine_rank")]
