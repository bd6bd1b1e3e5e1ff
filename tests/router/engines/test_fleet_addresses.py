"""Addresses come, go, come back, move, and lead to the same engine twice."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.engines import client as engine_client
from router.engines.client import EngineClient
from router.errors import EngineError, NoEngine
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngine, expected_tokens
from tests.router.fleets import (
    CONFIG,
    SLOW,
    collect,
    engine_of,
    first_tokens,
    fleet_of,
    request,
    running,
    states,
    tokens_of,
    until,
)

SERVING, UNAVAILABLE = EngineState.SERVING, EngineState.UNAVAILABLE


class CountingEngine(FakeEngine):
    """Counts how often it was asked for its model: once with each attempt to connect."""

    num_attempts = 0

    async def GetModelInfo(self, request, context):
        self.num_attempts += 1
        return await super().GetModelInfo(request, context)


@asynccontextmanager
async def one_engine(config=CONFIG):
    """An engine and two addresses of it."""
    async with CountingEngine(config, host="0.0.0.0") as engine:
        port = engine.address.rpartition(":")[2]
        yield engine, f"127.0.0.1:{port}", f"127.0.0.2:{port}"


def details(fleet):
    return {engine.address: engine.detail for engine in fleet.engines()}


async def test_second_name_of_an_engine_is_refused_until_the_first_is_gone():
    async with one_engine() as (engine, first, second), running([first]) as fleet:
        await until(lambda: states(fleet) == [SERVING])

        fleet.set_addresses([first, second])

        await until(lambda: states(fleet) == [SERVING, UNAVAILABLE])
        detail = f"refused: it is the same engine as {first} (epoch {engine.cache.epoch})"
        assert details(fleet)[second] == detail
        assert fleet.models()[0].num_serving_engines == 1
        fleet.set_addresses([second])
        await until(lambda: states(fleet) == [SERVING])
        admitted, tokens, _ = await collect(fleet, request([1]))
        assert admitted.engine == second
        assert tokens == expected_tokens([1], 8)


async def test_engine_with_two_names_counts_once_after_a_restart_in_place():
    async with one_engine() as (engine, *names), running(names) as fleet:
        await until(lambda: set(states(fleet)) == {SERVING, UNAVAILABLE})
        before = engine.cache.epoch

        await engine.restart()

        await until(lambda: fleet.statistics().num_connections == 2)
        await until(lambda: set(states(fleet)) == {SERVING, UNAVAILABLE})
        refusal = f"(epoch {engine.cache.epoch})"
        await until(lambda: any(refusal in detail for detail in details(fleet).values()))
        assert engine.cache.epoch != before


async def test_second_name_that_moves_to_an_engine_of_its_own_is_taken():
    async with one_engine() as (engine, first, second), running([first]) as fleet:
        await until(lambda: states(fleet) == [SERVING])
        fleet.set_addresses([first, second])
        await until(lambda: states(fleet) == [SERVING, UNAVAILABLE])
        host, _, port = second.rpartition(":")
        await engine.stop()

        async with (
            FakeEngine(CONFIG, host="127.0.0.1", port=int(port)),
            FakeEngine(CONFIG, host=host, port=int(port)),
        ):
            await until(lambda: states(fleet) == [SERVING, SERVING])
        await engine.start()


async def test_stalled_engine_is_not_asked_again_by_its_other_name(monkeypatch):
    monkeypatch.setattr(engine_client, "TICK_SECONDS", 0.01)
    config = replace(SLOW, prefill_tokens_per_second=1e9)
    async with one_engine(config) as (engine, first, second), running([first]) as fleet:
        await until(lambda: states(fleet) == [SERVING])
        fleet.set_addresses([first, second])
        await until(lambda: states(fleet) == [SERVING, UNAVAILABLE])
        reader = asyncio.create_task(collect(fleet, request([1], 2000)))
        await until(lambda: engine.num_running)

        engine.stall()

        await until(lambda: "stalled" in details(fleet)[first])
        num_attempts = engine.num_attempts
        await until(lambda: engine.num_attempts > num_attempts + 3)
        assert states(fleet) == [UNAVAILABLE, UNAVAILABLE]
        assert "same engine" in details(fleet)[second]
        reader.cancel()
        await asyncio.wait([reader])


async def test_old_name_that_replaces_the_new_one_takes_requests_at_once():
    async with one_engine(SLOW) as (_, first, second), running([first]) as fleet:
        await until(lambda: states(fleet) == [SERVING])
        events = fleet.generate(request(range(8), 300))
        assert (await anext(events)).engine == first
        fleet.set_addresses([second])
        await until(lambda: states(fleet) == [EngineState.DRAINING, SERVING])

        fleet.set_addresses([first])

        assert states(fleet) == [SERVING, EngineState.DRAINING]
        assert (await collect(fleet, request([1])))[0].engine == first
        await events.aclose()


async def test_new_name_of_an_engine_takes_over_while_the_old_one_finishes():
    async with one_engine(SLOW) as (_, first, second), running([first]) as fleet:
        await until(lambda: states(fleet) == [SERVING])
        events = fleet.generate(request(range(8), 300))
        assert (await anext(events)).engine == first

        fleet.set_addresses([second])
        await until(lambda: states(fleet) == [EngineState.DRAINING, SERVING])
        # Back again, and too late: the engine has its place.
        fleet.set_addresses([first, second])

        assert states(fleet) == [EngineState.DRAINING, SERVING]
        assert (await collect(fleet, request([1])))[0].engine == second
        tokens, _ = await tokens_of(events)
        assert tokens == expected_tokens(range(8), 300)
        await until(lambda: "same engine" in details(fleet)[first])


async def test_address_that_comes_back_while_its_connection_ends_is_connected_anew(monkeypatch):
    ending, may_end = asyncio.Event(), asyncio.Event()
    keep_connected = EngineClient._keep_connected

    async def end_slowly(self):
        try:
            await keep_connected(self)
        finally:
            ending.set()
            await may_end.wait()

    monkeypatch.setattr(EngineClient, "_keep_connected", end_slowly)
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        fleet.set_addresses([])
        await asyncio.wait_for(ending.wait(), 10)

        fleet.set_addresses([engine.address])

        with pytest.raises(NoEngine):
            await collect(fleet, request([1]))
        may_end.set()
        await until(lambda: states(fleet) == [SERVING])
        _, tokens, _ = await collect(fleet, request([1]))
        assert tokens == expected_tokens([1], 8)
        assert fleet.statistics().num_connections == 2


async def test_request_waits_for_no_engine_of_another_model_of_the_same_name(monkeypatch):
    async with fleet_of(SLOW) as (fleet, (engine,)):
        events = fleet.generate(request(range(8), 2000))
        await first_tokens(events)
        reader = asyncio.create_task(tokens_of(events))
        await engine.stop()
        port = int(engine.address.rpartition(":")[2])

        async with FakeEngine(replace(SLOW, fingerprint="0" * 32), port=port) as other:
            await until(lambda: fleet.statistics().num_connections == 2)
            assert engine_of([other], (await collect(fleet, request([1])))[0]) is other
            monkeypatch.setattr("router.request.dispatcher._PATIENCE_SECONDS", 0.0)
            with pytest.raises(EngineError, match="not connected"):
                await reader
            assert len(other.submissions) == 1
        await engine.start()
