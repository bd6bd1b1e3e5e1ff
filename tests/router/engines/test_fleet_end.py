"""What the end of a router's grace means for requests, wherever they are."""

import asyncio
from dataclasses import replace

import pytest

from protos.pagestream.engine.v1 import engine_pb2
from router.errors import Draining
from router.request import dispatcher
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngine
from tests.router.fleets import CONFIG, SLOW, collect, fleet_of, request, running, states, until

OVER = Draining("the grace is over")


async def test_request_between_two_engines_ends_with_the_reason(monkeypatch):
    monkeypatch.setattr(dispatcher, "_PATIENCE_SECONDS", 60.0)
    async with fleet_of(SLOW) as (fleet, (engine,)):
        reader = asyncio.create_task(collect(fleet, request([1], 2000)))
        await until(lambda: engine.num_running)
        engine.die_after(3)
        # It has tokens, and waits for another engine.
        await until(lambda: states(fleet) != [EngineState.SERVING])

        fleet.end_requests(OVER)

        with pytest.raises(Draining, match="the grace is over"):
            await asyncio.wait_for(reader, 10)


async def test_request_that_comes_to_the_fleet_too_late_ends_with_the_reason():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        fleet.end_requests(OVER)

        with pytest.raises(Draining, match="the grace is over"):
            await collect(fleet, request([1]))
        assert not engine.num_running + engine.num_waiting


async def test_engine_in_an_unknown_state_still_keeps_others_of_its_name_away():
    other = replace(CONFIG, fingerprint="a" * 32)
    async with (
        FakeEngine(CONFIG) as first,
        FakeEngine(other) as second,
        running([first.address]) as fleet,
    ):
        await until(lambda: states(fleet) == [EngineState.SERVING])
        first.state = 99
        first._publish()
        await until(lambda: states(fleet) == [EngineState.UNAVAILABLE])

        fleet.set_addresses([first.address, second.address])

        await until(lambda: f"has fingerprint '{'a' * 32}'" in fleet.engines()[1].detail)
        first.state = engine_pb2.ENGINE_STATE_SERVING
        first._publish()
        await until(lambda: states(fleet) == [EngineState.SERVING, EngineState.UNAVAILABLE])
