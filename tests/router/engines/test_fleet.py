import asyncio
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import grpc
import pytest

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.status import Reason, code_number
from router.errors import EngineError, QueueFull, UnknownModel
from router.types.engine_events import Admitted, Finished, FinishReason, Tokens
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngine, expected_tokens
from tests.router.fleets import (
    CONFIG,
    TIMEOUT,
    Observer,
    collect,
    first_tokens,
    fleet_of,
    request,
    rest_of,
    running,
    states,
    until,
)


async def test_concurrent_requests_get_exactly_their_tokens():
    async with fleet_of(CONFIG, CONFIG, CONFIG) as (fleet, engines):
        prompts = [range(n % 7, n % 7 + 5 + n) for n in range(60)]
        results = await asyncio.gather(*(collect(fleet, request(p, 40)) for p in prompts))

        for prompt, (_, tokens, finished) in zip(prompts, results, strict=True):
            assert tokens == expected_tokens(prompt, 40)
            assert finished == Finished(reason=FinishReason.LENGTH)
        assert {admitted.engine for admitted, _, _ in results} == {e.address for e in engines}
        assert all(engine.num_in_flight == 0 for engine in fleet.engines())


async def test_admission_is_given_out_with_what_follows_it_at_once():
    async with (
        fleet_of(CONFIG) as (fleet, _),
        asyncio.timeout(TIMEOUT),
        aclosing(fleet.generate(request([1], 3))) as events,
    ):
        first = await anext(events)
        # Without the event loop, so nothing can come between.
        with pytest.raises(StopIteration) as second:
            anext(events).send(None)

    assert isinstance(first, Admitted)
    assert first.is_followed
    assert isinstance(second.value.value, Tokens)


async def test_sampling_parameters_reach_the_engine():
    async with fleet_of(CONFIG) as (fleet, engines):
        tokens = expected_tokens([1, 2, 3], 8, seed=77)
        asked = request(
            [1, 2, 3], 8, temperature=0.5, seed=77, stop_token_ids=(tokens[4],), timeout=9.0
        )
        asked = replace(asked, priority=3, cache_salt="s", traceparent="t", tracestate="u")

        admitted, received, finished = await collect(fleet, asked)

        assert received == tokens[:5]
        assert admitted.seed == 77
        assert finished == Finished(reason=FinishReason.STOP, stop_token_id=tokens[4])
        sent = engines[0].submissions[0]
        assert (sent.request.request_id, sent.request.priority) == ("r", 3)
        assert (sent.request.cache_salt, sent.traceparent, sent.tracestate) == ("s", "t", "u")
        assert 0 < sent.timeout.ToTimedelta().total_seconds() <= 9.0


async def test_engine_s_own_error_passes_through_unchanged():
    async with fleet_of(CONFIG, CONFIG) as (fleet, engines):
        with pytest.raises(EngineError) as raised:
            await collect(fleet, request([1], temperature=-1.0))

        assert raised.value.status.reason == Reason.BAD_SAMPLING_PARAMS
        assert raised.value.status.domain == "pagestream.engine.v1"
        assert raised.value.status.code == code_number(grpc.StatusCode.INVALID_ARGUMENT)
        assert sum(len(engine.submissions) for engine in engines) == 1


async def test_request_past_its_time_limit_fails_with_deadline_exceeded():
    async with fleet_of(CONFIG) as (fleet, engines):
        engines[0].stall()

        with pytest.raises(EngineError) as raised:
            await collect(fleet, request([1], timeout=0.05))

        assert raised.value.status.reason == Reason.DEADLINE_EXCEEDED


async def test_closing_the_events_frees_the_request_on_its_engine():
    async with fleet_of(replace(CONFIG, decode_step_seconds=0.002)) as (fleet, (engine,)):
        events = fleet.generate(request(range(20), 2000))
        await first_tokens(events)

        await events.aclose()

        await engine.wait_until(lambda: not engine.num_running)
        assert engine.num_free_blocks == CONFIG.num_blocks
        assert fleet.engines()[0].num_in_flight == 0
        _, tokens, _ = await collect(fleet, request([5]))
        assert tokens == expected_tokens([5], 8)


async def test_cancelling_the_reader_s_task_frees_the_request_while_it_waits():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        engine.stall()
        task = asyncio.create_task(collect(fleet, request(range(20))))
        await engine.wait_until(lambda: engine.num_waiting == 1)

        task.cancel()
        await asyncio.wait([task])

        await engine.wait_until(lambda: not engine.num_waiting)
        assert fleet.statistics().index.num_speculative_entries == 0


async def test_same_prefix_goes_to_the_same_engine():
    observer = Observer()
    async with fleet_of(CONFIG, CONFIG, CONFIG, CONFIG, observers=observer) as (fleet, _):
        shared = list(range(512))
        admitted, _, _ = await collect(fleet, request([*shared, 1]))
        await until(lambda: fleet.statistics().index.num_entries >= 128)

        for last in range(2, 8):
            following, tokens, _ = await collect(fleet, request([*shared, last]))

            assert following.engine == admitted.engine
            assert following.num_cached_tokens == 512
            assert tokens == expected_tokens([*shared, last], 8)
        assert observer.admitted[1:] == [(admitted.engine, 512)] * 6
        for placement in observer.placed[1:]:
            assert placement.num_predicted_cached_tokens == 512
            assert placement.num_best_cached_tokens == 512


async def test_burst_of_equal_prompts_goes_one_way():
    config = replace(CONFIG, prefill_tokens_per_second=50_000.0)
    async with fleet_of(config, config, config) as (fleet, _):
        prompt = range(800)

        results = await asyncio.gather(*(collect(fleet, request(prompt)) for _ in range(16)))

        assert len({admitted.engine for admitted, _, _ in results}) == 1
        assert all(tokens == expected_tokens(prompt, 8) for _, tokens, _ in results)


async def test_different_cache_salts_share_no_prefix():
    async with fleet_of(CONFIG) as (fleet, _):
        await collect(fleet, request(range(64)))

        admitted, _, _ = await collect(fleet, replace(request(range(64)), cache_salt="other"))

        assert admitted.num_cached_tokens == 0


async def test_restarted_engine_returns_with_an_empty_share_of_the_index():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        await collect(fleet, request(range(64)))
        await until(lambda: fleet.engines()[0].num_indexed_blocks >= 16)

        await engine.restart()

        await until(lambda: fleet.statistics().num_connections == 2)
        assert fleet.engines()[0].num_indexed_blocks == 0
        assert fleet.engines()[0].model.epoch == engine.cache.epoch
        admitted, tokens, _ = await collect(fleet, request(range(64)))
        assert admitted.num_cached_tokens == 0
        assert tokens == expected_tokens(range(64), 8)
        await until(lambda: fleet.engines()[0].num_indexed_blocks == len(engine.cache.blocks))


async def test_lost_cache_change_is_repaired_by_a_snapshot():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        engine.drop_deltas(1)
        await collect(fleet, request(range(64), 30))

        await until(lambda: fleet.engines()[0].num_indexed_blocks == len(engine.cache.blocks))

        statistics = fleet.statistics().index
        assert statistics.num_gaps == 1
        assert statistics.num_snapshots == 2
        assert engine.num_snapshots == 2


async def test_evicted_blocks_leave_the_index():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        await collect(fleet, request(range(64)))
        await until(lambda: fleet.engines()[0].num_indexed_blocks >= 16)

        engine.evict_all()

        await until(lambda: fleet.engines()[0].num_indexed_blocks == 0)


async def test_full_engine_s_requests_go_to_another():
    options = {"placement": "round_robin", "observers": Observer()}
    async with fleet_of(CONFIG, CONFIG, **options) as (fleet, engines):
        engines[0].refuse(Reason.QUEUE_FULL, 2.0)

        results = [await collect(fleet, request([n])) for n in range(6)]

        assert {admitted.engine for admitted, _, _ in results} == {engines[1].address}
        assert (engines[0].address, "QUEUE_FULL") in options["observers"].retried


async def test_all_engines_full_is_queue_full_with_the_shortest_wait():
    async with fleet_of(CONFIG, CONFIG) as (fleet, engines):
        engines[0].refuse(Reason.QUEUE_FULL, 2.5)
        engines[1].refuse(Reason.QUEUE_FULL, 1.5)

        with pytest.raises(QueueFull) as raised:
            await collect(fleet, request([1]))

        assert raised.value.status.code == code_number(grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert raised.value.status.retry_after == 1.5
        assert [len(engine.submissions) for engine in engines] == [1, 1]


async def test_draining_engine_finishes_its_requests_and_gets_no_new_ones():
    config = replace(CONFIG, decode_step_seconds=0.001)
    async with fleet_of(config, config) as (fleet, engines):
        events = fleet.generate(request(range(8), 100))
        admitted = await anext(events)
        drained = next(engine for engine in engines if engine.address == admitted.engine)

        await drained.drain()

        await until(lambda: EngineState.DRAINING in states(fleet))
        later = [await collect(fleet, request([n])) for n in range(4)]
        assert drained.address not in {admitted.engine for admitted, _, _ in later}
        rest = await rest_of(events)
        tokens = [token for event in rest[:-1] for token in event.token_ids]
        assert tokens == expected_tokens(range(8), 100)


async def test_models_are_found_by_name():
    async with fleet_of(CONFIG, CONFIG, replace(CONFIG, model_name="big")) as (fleet, engines):
        assert [(m.info.name, m.num_serving_engines) for m in fleet.models()] == [
            ("big", 1),
            ("fake", 2),
        ]
        assert fleet.model_info("big").block_size == 4
        with pytest.raises(UnknownModel, match=r'"x{128}" is not served; models served: "big"'):
            fleet.model_info("x" * 1_000_000)
        with pytest.raises(
            UnknownModel, match='"none" is not served; models served: "big", "fake"'
        ):
            fleet.model_info("none")
        with pytest.raises(UnknownModel, match="model is empty"):
            fleet.model_info("")
        admitted, _, _ = await collect(fleet, request([1], model="big"))
        assert admitted.engine == engines[2].address


async def test_empty_name_is_the_only_model():
    async with fleet_of(CONFIG) as (fleet, _):
        _, tokens, _ = await collect(fleet, request([1], model=""))

        assert tokens == expected_tokens([1], 8)


@pytest.mark.parametrize(
    ("difference", "detail"),
    [
        ({"fingerprint": "0" * 32}, "fingerprint"),
        ({"block_size": 8}, "block_size"),
        ({"block_hash_scheme": "md5"}, 'block hash scheme is "md5"'),
    ],
)
async def test_engine_that_does_not_match_is_refused_loudly(difference, detail, caplog):
    async with fleet_of(CONFIG) as (_, (first,)), FakeEngine(replace(CONFIG, **difference)) as odd:
        async with running([first.address]) as probe:
            async with asyncio.timeout(TIMEOUT):
                await probe.wait_ready()
        addresses = [first.address, odd.address]
        async with running(addresses[:1]) as _, running(addresses) as fleet:
            await until(
                lambda: sorted(s.value for s in states(fleet)) == ["serving", "unavailable"]
            )

            [refused] = [e for e in fleet.engines() if e.state is EngineState.UNAVAILABLE]
            assert detail in refused.detail
            assert any(detail in record.getMessage() for record in caplog.records)


async def test_request_goes_to_an_engine_that_can_hold_it():
    small = replace(CONFIG, num_blocks=8)
    short = replace(CONFIG, max_model_len=30)
    async with fleet_of(small, short, CONFIG, placement="round_robin") as (fleet, engines):
        assert fleet.model_info("fake").max_model_len == CONFIG.max_model_len
        assert fleet.models()[0].info.max_model_len == CONFIG.max_model_len
        of_long = {(await collect(fleet, request([n] * 30, 4)))[0].engine for n in range(6)}
        of_short = {(await collect(fleet, request([n] * 20, 4)))[0].engine for n in range(6)}

        assert of_long == {engines[2].address}
        assert of_short == {engine.address for engine in engines}


async def test_request_too_long_for_every_engine_is_refused_by_the_longest():
    small = replace(CONFIG, max_model_len=32)
    large = replace(CONFIG, max_model_len=64)
    async with fleet_of(small, large, placement="round_robin") as (fleet, _):
        for _ in range(3):
            with pytest.raises(EngineError, match=r"70 tokens, .* allowed is 64") as raised:
                await collect(fleet, request([1] * 70))
            assert raised.value.status.reason == Reason.PROMPT_TOO_LONG


async def test_engine_that_was_in_a_state_unknown_to_the_router_serves_again():
    async with fleet_of(CONFIG) as (fleet, (engine,)):
        engine.state = 99
        engine._publish()
        await until(lambda: states(fleet) == [EngineState.UNAVAILABLE])
        engine.state = engine_pb2.ENGINE_STATE_SERVING
        engine._publish()
        await until(lambda: states(fleet) == [EngineState.SERVING])

        _, tokens, _ = await collect(fleet, request([1]))

        assert tokens == expected_tokens([1], 8)


async def test_engine_that_cannot_serve_keeps_no_other_away():
    class Broken(FakeEngine):
        async def GenerateMany(self, request_iterator, context):
            yield engine_pb2.GenerateManyResponse()

    async with AsyncExitStack() as stack:
        broken = await stack.enter_async_context(Broken(CONFIG))
        good = await stack.enter_async_context(FakeEngine(replace(CONFIG, fingerprint="0" * 32)))
        fleet = await stack.enter_async_context(running([broken.address, good.address]))

        await until(lambda: states(fleet) == [EngineState.UNAVAILABLE, EngineState.SERVING])

        assert [model.info.fingerprint for model in fleet.models()] == ["0" * 32]


async def test_tokenizer_files_arrive_whole(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "chat_template.jinja").write_bytes(b"")
    async with fleet_of(replace(CONFIG, tokenizer=tmp_path)) as (fleet, _):
        files = await fleet.fetch_tokenizer(fleet.model_info("fake"))

    assert files == {
        "tokenizer.json": bytes(range(256)) * 1000,
        "chat_template.jinja": b"",
    }


async def test_missing_tokenizer_is_the_engine_s_error():
    async with fleet_of(CONFIG) as (fleet, _):
        with pytest.raises(EngineError) as raised:
            await fleet.fetch_tokenizer(fleet.model_info(""))

        assert raised.value.status.reason == Reason.NO_TOKENIZER


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_loaded"])
async def test_policy_without_prefixes_uses_all_engines(policy):
    async with fleet_of(CONFIG, CONFIG, placement=policy) as (fleet, engines):
        results = await asyncio.gather(*(collect(fleet, request([1, 2])) for _ in range(24)))

        counts = Counter(admitted.engine for admitted, _, _ in results)
        assert set(counts) == {engine.address for engine in engines}
        if policy != "random":
            assert set(counts.values()) == {12}


async def test_observer_learns_of_each_placement_and_admission():
    observer = Observer()
    async with fleet_of(CONFIG, CONFIG, placement="round_robin", observers=observer) as (
        fleet,
        engines,
    ):
        first, second = sorted(engine.address for engine in engines)
        next(e for e in engines if e.address == first).refuse(Reason.QUEUE_FULL)

        await collect(fleet, replace(request([1]), pipeline_seconds=1.5))

    assert [placement.engine for placement in observer.placed] == [first, second]
    added, *of_retries = observer.added
    assert added > 1.5, "with what the request brought along"
    assert of_retries == [None]
    assert observer.retried == [(first, "QUEUE_FULL")]
    assert observer.admitted == [(second, 0)]


async def test_placement_is_explained_by_the_costs_of_all_engines(caplog):
    caplog.set_level("DEBUG", logger="router.request.dispatcher")
    async with fleet_of(CONFIG, CONFIG) as (fleet, engines):
        await collect(fleet, request([1, 2, 3]))

    (line,) = [r.getMessage() for r in caplog.records if "request placed" in r.getMessage()]
    costs = line.partition("costs_ms=")[2].split(",")
    assert [cost.partition("=")[0].rpartition(":")[0] for cost in costs] == [
        engine.address for engine in engines
    ]
