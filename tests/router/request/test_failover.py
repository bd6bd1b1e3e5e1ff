"""Requests whose engine fails, stalls or drains go on elsewhere."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from protos.wire.status import Reason, code_number
from router.engines import client as engine_client
from router.errors import EngineError
from router.request import dispatcher
from router.types.engine_events import Finished, FinishReason
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import expected_tokens
from tests.router.fleets import (
    CONFIG,
    SLOW,
    TIMEOUT,
    Observer,
    collect,
    engine_of,
    first_tokens,
    fleet_of,
    request,
    rest_of,
    tokens_of,
    until,
)


async def test_request_that_fails_before_its_first_token_is_tried_once_elsewhere():
    async with fleet_of(CONFIG, CONFIG, placement="round_robin") as (fleet, engines):
        engines[0].refuse(Reason.ENGINE_FAILED)

        results = [await collect(fleet, request([n])) for n in range(4)]

        assert {admitted.engine for admitted, _, _ in results} == {engines[1].address}


async def test_second_failure_ends_the_request():
    async with fleet_of(CONFIG, CONFIG, CONFIG) as (fleet, engines):
        for engine in engines:
            engine.refuse(Reason.ENGINE_FAILED)

        with pytest.raises(EngineError) as raised:
            await collect(fleet, request([1]))

        assert raised.value.status.reason == Reason.ENGINE_FAILED
        assert sum(len(engine.submissions) for engine in engines) == 2


async def test_engine_that_dies_before_the_first_token_hands_its_requests_on():
    async with fleet_of(CONFIG, CONFIG) as (fleet, engines):
        for engine in engines:
            engine.stall()
        tasks = [asyncio.create_task(collect(fleet, request([n, n]))) for n in range(8)]
        await until(lambda: sum(engine.num_waiting for engine in engines) == 8)

        await engines[0].stop()
        engines[1].resume()

        for number, (admitted, tokens, _) in enumerate(await asyncio.gather(*tasks)):
            assert admitted.engine == engines[1].address
            assert tokens == expected_tokens([number, number], 8)
        await engines[0].start()


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7}, {"temperature": 0.7, "seed": 5}])
async def test_requests_of_an_engine_that_dies_go_on_elsewhere_without_a_seam(params):
    observer = Observer()
    async with fleet_of(SLOW, SLOW, observers=observer) as (fleet, engines):
        prompts = [[n, n + 1, n + 2] for n in range(32)]
        streams = [fleet.generate(request(prompt, 60, **params)) for prompt in prompts]
        starts = await asyncio.gather(*(anext(events) for events in streams))
        firsts = [(await anext(events)).token_ids for events in streams]
        victim = engine_of(engines, starts[0])
        num_lost = sum(admitted.engine == victim.address for admitted in starts)

        victim.die_after(0)
        rests = await asyncio.gather(*(tokens_of(events) for events in streams))

        for prompt, admitted, first, (rest, finished) in zip(
            prompts, starts, firsts, rests, strict=True
        ):
            seed = admitted.seed if params else 0
            assert first + rest == expected_tokens(prompt, 60, seed=seed)
            assert finished == Finished(reason=FinishReason.LENGTH)
        assert len(observer.resumed) == num_lost > 0
        assert {cause for cause, _ in observer.resumed} == {"ENGINE_FAILED"}
        assert all(0 < num_tokens < 60 for _, num_tokens in observer.resumed)
        lost = next(engine for engine in fleet.engines() if engine.address == victim.address)
        assert (lost.state, lost.num_in_flight) == (EngineState.UNAVAILABLE, 0)
        assert lost.detail
        assert fleet.statistics().index.num_speculative_entries == 0


async def test_requests_of_an_engine_that_stalls_go_on_elsewhere(monkeypatch):
    # A tick is as long as ever, but comes sooner: 3 s of silence are 13 of them.
    monkeypatch.setattr(engine_client, "TICK_SECONDS", 0.01)
    observer = Observer()
    config = replace(SLOW, prefill_tokens_per_second=1e9)
    async with fleet_of(config, config, observers=observer) as (fleet, engines):
        events = fleet.generate(request(range(8), 60))
        stalled = engine_of(engines, await anext(events))
        first = (await anext(events)).token_ids

        stalled.stall()

        rest, _ = await tokens_of(events)
        assert first + rest == expected_tokens(range(8), 60)
        assert [cause for cause, _ in observer.resumed] == ["stalled"]
        lost = next(engine for engine in fleet.engines() if engine.address == stalled.address)
        assert lost.state is EngineState.UNAVAILABLE
        assert "stalled: no step for" in lost.detail
        # It gets no request, though it would take a connection.
        later = [await collect(fleet, request([n])) for n in range(4)]
        assert stalled.address not in {admitted.engine for admitted, _, _ in later}


async def test_request_that_a_draining_engine_hands_back_goes_on_elsewhere():
    observer = Observer()
    async with fleet_of(SLOW, SLOW, observers=observer) as (fleet, engines):
        events = fleet.generate(request(range(8), 60))
        drained = engine_of(engines, await anext(events))
        first = (await anext(events)).token_ids

        await drained.drain()
        drained.hand_back()

        rest, _ = await tokens_of(events)
        assert first + rest == expected_tokens(range(8), 60)
        assert [cause for cause, _ in observer.resumed] == ["DRAINING"]


async def test_request_follows_its_engines_through_a_rolling_restart():
    async with fleet_of(SLOW, SLOW) as (fleet, engines):
        events = fleet.generate(request(range(8), 200))
        running_on = engine_of(engines, await anext(events))
        tokens = (await anext(events)).token_ids
        for _ in range(4):
            other = next(engine for engine in engines if engine is not running_on)
            num_connections = fleet.statistics().num_connections
            await running_on.restart()
            await until(lambda before=num_connections: fleet.statistics().num_connections > before)
            tokens = tokens + (await anext(events)).token_ids
            running_on = other

        rest, _ = await tokens_of(events)
        assert tokens + rest == expected_tokens(range(8), 200)


async def test_request_with_tokens_waits_for_the_only_engine_to_return():
    async with fleet_of(SLOW) as (fleet, (engine,)):
        events = fleet.generate(request(range(8), 40))
        await anext(events)
        first = (await anext(events)).token_ids

        await engine.restart()

        rest, _ = await tokens_of(events)
        assert first + rest == expected_tokens(range(8), 40)


async def test_request_that_cannot_go_on_ends_as_unavailable(monkeypatch):
    monkeypatch.setattr(dispatcher, "_PATIENCE_SECONDS", 0.0)
    async with fleet_of(SLOW, SLOW) as (fleet, engines):
        events = fleet.generate(request(range(8), 2000))
        victim = engine_of(engines, await anext(events))
        await anext(events)
        for engine in engines:
            engine.refuse(Reason.QUEUE_FULL, 1.0)

        victim.die_after(0)

        with pytest.raises(EngineError) as raised:
            await rest_of(events)
        assert raised.value.status.reason == Reason.ENGINE_FAILED
        assert raised.value.status.code == code_number(grpc.StatusCode.UNAVAILABLE)
        assert victim.address in raised.value.status.message
        assert fleet.statistics().index.num_speculative_entries == 0


async def test_request_with_tokens_waits_for_a_full_engine_only_so_long(monkeypatch):
    monkeypatch.setattr(dispatcher, "_PATIENCE_SECONDS", 0.3)
    async with fleet_of(SLOW) as (fleet, (engine,)):
        events = fleet.generate(request(range(8), 2000))
        await first_tokens(events)
        engine.refuse(Reason.QUEUE_FULL, 1.0)

        engine.hand_back()

        with pytest.raises(EngineError) as raised:
            await rest_of(events)
        assert raised.value.status.reason == Reason.DRAINING
        assert len(engine.submissions) > 1


async def test_request_that_breaks_one_engine_after_another_is_given_up():
    async with fleet_of(SLOW, SLOW) as (fleet, engines):
        received = []

        async def read():
            async for event in fleet.generate(request(range(8), 2000)):
                received.append(event)  # noqa: PERF401

        reader = asyncio.create_task(read())
        # Eight times it may go on.
        for _ in range(9):
            await until(lambda: any(engine.num_running for engine in engines))
            num_before = len(received)
            await until(lambda before=num_before: len(received) > before + 1)
            await next(engine for engine in engines if engine.num_running).restart()

        with pytest.raises(EngineError) as raised:
            await asyncio.wait_for(reader, TIMEOUT)

        assert raised.value.status.reason == Reason.ENGINE_FAILED
