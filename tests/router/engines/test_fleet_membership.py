"""Engines join and leave while the fleet runs."""

import asyncio
import logging

import pytest

from protos.wire.status import Reason
from router.engines.lifecycle import Stage
from router.errors import NoEngine
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngine, expected_tokens
from tests.router.fleets import (
    CONFIG,
    SLOW,
    TIMEOUT,
    collect,
    engine_of,
    fleet_of,
    request,
    running,
    states,
    tokens_of,
    until,
)


async def test_late_engine_joins():
    async with FakeEngine(CONFIG) as reserved:
        address = reserved.address
    async with running([address]) as fleet:
        with pytest.raises(NoEngine) as raised:
            fleet.model_info("")
        assert raised.value.status.retry_after is not None
        await until(lambda: states(fleet) == [EngineState.UNAVAILABLE])

        async with FakeEngine(CONFIG, port=int(address.rpartition(":")[2])):
            async with asyncio.timeout(TIMEOUT):
                await fleet.wait_ready()
            assert states(fleet) == [EngineState.SERVING]
            _, tokens, _ = await collect(fleet, request([1]))
            assert tokens == expected_tokens([1], 8)

        async with asyncio.timeout(TIMEOUT):
            await fleet.wait_unready()
        with pytest.raises(NoEngine):
            fleet.model_info("fake")


async def test_engine_that_is_added_while_the_router_runs_gets_requests():
    async with fleet_of(CONFIG) as (fleet, (first,)), FakeEngine(CONFIG) as second:
        fleet.set_addresses([first.address, second.address])
        await until(lambda: states(fleet) == [EngineState.SERVING] * 2)
        first.refuse(Reason.QUEUE_FULL)

        admitted, tokens, _ = await collect(fleet, request([1]))

        assert admitted.engine == second.address
        assert tokens == expected_tokens([1], 8)


async def test_engine_that_is_removed_finishes_its_requests_and_is_forgotten(caplog):
    caplog.set_level(logging.INFO)
    async with fleet_of(SLOW, SLOW) as (fleet, engines):
        events = fleet.generate(request(range(8), 100))
        removed = engine_of(engines, await anext(events))
        (kept,) = (engine for engine in engines if engine is not removed)

        fleet.set_addresses([kept.address])

        assert EngineState.DRAINING in states(fleet)
        later = [await collect(fleet, request([n])) for n in range(4)]
        assert {admitted.engine for admitted, _, _ in later} == {kept.address}
        tokens, _ = await tokens_of(events)
        assert tokens == expected_tokens(range(8), 100)
        await until(lambda: [engine.address for engine in fleet.engines()] == [kept.address])
        assert fleet.statistics().num_connections == 2
        await until(lambda: not fleet.statistics().index.num_speculative_entries)
        said = [r.getMessage() for r in caplog.records if removed.address in r.getMessage()]
        assert said[-2:] == [
            f"engine {verb} engine={removed.address}" for verb in ("leaves", "left")
        ]


async def test_end_of_the_last_request_closes_an_engine_that_leaves_and_no_other():
    async with fleet_of(SLOW, SLOW) as (fleet, engines):
        running_ones = [fleet.generate(request(range(8), 2000)) for _ in engines]
        admitted = [await anext(events) for events in running_ones]
        lives = [fleet.member(one.engine).life for one in admitted]
        assert len({life.address for life in lives}) == 2
        fleet.set_addresses([lives[1].address])
        assert [life.stage for life in lives] == [Stage.LEAVING, Stage.CONNECTED]

        for events in running_ones:
            await events.aclose()

        # At once: nobody has to come and look.
        assert [life.stage for life in lives] == [Stage.CLOSED, Stage.CONNECTED]
        await until(lambda: [e.address for e in fleet.engines()] == [lives[1].address])


async def test_idle_engine_that_is_removed_is_closed_at_once():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        life = fleet.member(engine.address).life

        fleet.set_addresses([])

        assert life.stage is Stage.CLOSED
        await until(lambda: not fleet.engines())


async def test_engine_that_leaves_is_forgotten_with_its_connection(caplog):
    caplog.set_level(logging.INFO)
    async with fleet_of(SLOW) as (fleet, (engine,)):
        events = fleet.generate(request(range(8), 2000))
        await anext(events)
        fleet.set_addresses([])

        await engine.stop()

        await until(lambda: not fleet.engines())
        await events.aclose()
        await engine.start()
    said = [record.getMessage() for record in caplog.records]
    assert f"engine leaves engine={engine.address}" in said
    assert any(f"state changed engine={engine.address} state=unavailable" in one for one in said)
    assert said[-1] == f"engine left engine={engine.address}"


async def test_engine_that_comes_back_before_it_has_left_stays():
    async with fleet_of(SLOW) as (fleet, (engine,)):
        events = fleet.generate(request(range(8), 60))
        await anext(events)
        fleet.set_addresses([])
        with pytest.raises(NoEngine):
            await collect(fleet, request([1]))

        fleet.set_addresses([engine.address])

        assert states(fleet) == [EngineState.SERVING]
        await collect(fleet, request([1]))
        await events.aclose()
        assert fleet.statistics().num_connections == 1


async def test_removed_engine_that_cannot_be_reached_is_forgotten():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        fleet.set_addresses([engine.address, "127.0.0.1:1"])
        await until(lambda: states(fleet) == [EngineState.SERVING, EngineState.UNAVAILABLE])
        fleet.set_addresses([engine.address])
        await until(lambda: states(fleet) == [EngineState.SERVING])
