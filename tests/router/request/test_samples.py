"""Several continuations of one prompt: their order, their ends, and what they count as."""

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest

from protos.wire.sampling_params import SamplingParams
from protos.wire.status import ErrorStatus
from router.errors import EngineError, InvalidRequest, QueueFull, SlowReader
from router.request.pipeline import Bounds, Pipeline
from router.request.samples import merged
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import Admitted, FinishReason, PromptLogprobs, TokenLogprobs, Tokens
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE
from tests.router.fleets import CONFIG, TIMEOUT, fleet_of, until
from tests.router.pipelines import (
    BOUNDS,
    TOKENIZER,
    Recorder,
    collect,
    fleet_without_chats,
    request,
    tokens,
)

ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=0, seed=7)
BOUNDS_OF_MANY = Bounds(
    max_concurrent_requests=100,
    max_prompt_bytes=10_000,
    max_request_bytes=10_000,
    max_queued_prompt_tokens=10_000,
)
FAILED = EngineError(ErrorStatus(code=14, message="lost", reason="ENGINE_FAILED"))


@pytest.fixture
def fleet():
    return fleet_without_chats(supported_params=ALL_PARAMS, max_logprobs=5)


async def test_each_continuation_has_admission_tokens_text_and_finish_of_its_own(pipeline, fleet):
    texts = ["the quick", "Grüße 😀"]
    for index, text in enumerate(texts):
        token_ids = TOKENIZER.encode_text(text).tolist()
        fleet.answer(token_ids[:1], token_ids[1:], index=index)

    deltas = await collect(pipeline, request(n=2))

    for index, text in enumerate(texts):
        own = [delta for delta in deltas if delta.index == index]
        assert own[0].admission.num_cached_tokens == 16
        assert [bool(delta.finish) for delta in own] == [False, False, False, True]
        assert "".join(delta.text for delta in own) == text
        assert own[-1].finish.num_completion_tokens == sum(len(d.token_ids) for d in own)


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1])
async def test_continuations_share_prompt_and_seed_and_have_draws_of_their_own(
    pipeline, fleet, seed
):
    for index in (0, 1):
        fleet.answer([80], index=index)

    await collect(pipeline, request(n=2, sampling_params=SamplingParams(seed=seed, top_k=5)))

    first, second = (asked.sampling_params for asked in fleet.requests)
    assert (first.sample_index, second.sample_index) == (0, 1)
    assert first.seed == second.seed
    assert first.seed == seed if seed is not None else 0 <= first.seed < 2**63
    assert first.top_k == second.top_k == 5
    assert fleet.requests[0].prompt_token_ids is fleet.requests[1].prompt_token_ids


async def test_only_the_first_reports_on_the_prompt(pipeline, fleet):
    logprobs = TokenLogprobs(logprobs=[-1.0, -2.0])
    fleet.put(ADMITTED, PromptLogprobs(first_position=1, logprobs=logprobs), index=0)
    fleet.answer([80], index=0)
    fleet.answer([81], index=1)

    deltas = await collect(
        pipeline, request(n=2, sampling_params=SamplingParams(prompt_logprobs=0))
    )

    asked = [asked.sampling_params.prompt_logprobs for asked in fleet.requests]
    assert asked == [0, None]
    (reported,) = (delta for delta in deltas if delta.prompt_logprobs)
    assert reported.index == 0


async def test_stop_ends_one_continuation_and_not_the_other(pipeline, fleet):
    stop = TOKENIZER.decode([81], skip_special_tokens=True)
    fleet.put(ADMITTED, Tokens(token_ids=[80]), Tokens(token_ids=[81]), index=0)
    fleet.put(ADMITTED, index=1)
    deltas = pipeline.generate(request(n=2, stop=(stop,)))

    async with asyncio.timeout(TIMEOUT), aclosing(deltas):
        async for delta in deltas:
            if delta.finish:
                break
        assert (delta.index, delta.finish.stop_text) == (0, stop)
        assert fleet.num_open == 1
        fleet.answer([80, 82], index=1)
        rest = [delta async for delta in deltas]

    assert {delta.index for delta in rest} == {1}
    assert rest[-1].finish.reason is FinishReason.LENGTH


async def test_failure_of_one_ends_all(pipeline, fleet, observer):
    fleet.put(ADMITTED, index=0)
    fleet.put(ADMITTED, Tokens(token_ids=[80]), FAILED, index=1)

    with pytest.raises(EngineError, match="lost"):
        await collect(pipeline, request(n=2))

    assert fleet.num_open == 0
    assert Counter(call for call in observer.calls if call[0] == "ended") == {
        ("ended", "engine_failed"): 2
    }
    await asyncio.wait_for(pipeline.wait_idle(), TIMEOUT)


async def test_bug_in_one_is_not_lost(pipeline, fleet):
    fleet.put(ADMITTED, index=0)
    fleet.put(ADMITTED, ZeroDivisionError("a bug"), index=1)

    with pytest.raises(ZeroDivisionError):
        await collect(pipeline, request(n=2))

    assert fleet.num_open == 0


@pytest.mark.parametrize("leave", ["close", "cancel"])
async def test_leaving_cancels_all_and_keeps_the_outcome_of_those_that_ended(
    pipeline, fleet, observer, leave
):
    fleet.answer([80], index=0)
    fleet.put(ADMITTED, index=1)
    deltas = pipeline.generate(request(n=2))
    async with asyncio.timeout(TIMEOUT):
        num_messages = 0
        while num_messages < 4:
            await anext(deltas)
            num_messages += 1
        if leave == "close":
            await deltas.aclose()
        else:
            waiting = asyncio.ensure_future(anext(deltas))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    assert fleet.num_open == 0
    assert sorted(observer.calls[-2:]) == [("ended", "cancelled"), ("ended", "length")]
    assert pipeline.queued_prompt_tokens.held == 0


async def test_slow_reader_error_thrown_in_reaches_all(pipeline, fleet, observer):
    for index in (0, 1):
        fleet.put(ADMITTED, index=index)
    deltas = pipeline.generate(request(n=2))
    async with asyncio.timeout(TIMEOUT):
        await anext(deltas)
        with pytest.raises(SlowReader):
            await deltas.athrow(SlowReader("too slow"))

    assert fleet.num_open == 0
    assert observer.calls[-2:] == [("ended", "slow_reader")] * 2


async def test_reader_that_does_not_read_holds_all(pipeline, fleet):
    for index in (0, 1):
        fleet.put(ADMITTED, *[Tokens(token_ids=[80])] * 100, index=index)
    deltas = pipeline.generate(request(n=2))
    async with asyncio.timeout(TIMEOUT), aclosing(deltas):
        await anext(deltas)
        for _ in range(50):
            await asyncio.sleep(0)
        left = [fleet.sample_events[index].qsize() for index in (0, 1)]
        assert min(left) >= 97, "each continuation holds an event or two, and takes no more"
        received = [(await anext(deltas)).index for _ in range(40)]

    assert 15 <= sum(received) <= 25, "they take turns"


async def test_each_continuation_counts_as_a_request(fleet, observer):
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, BOUNDS)
        deltas = pipeline.generate(request(tokens(*[1] * 50), n=2))
        first = asyncio.ensure_future(anext(deltas))
        async with asyncio.timeout(TIMEOUT):
            await until(lambda: len(fleet.requests) == 2)
            assert pipeline.queued_prompt_tokens.held == 100
            with pytest.raises(QueueFull, match="2 requests are in progress, with 1 more"):
                await collect(pipeline, request())
            fleet.answer([80], index=0)
            await first
            assert pipeline.queued_prompt_tokens.held == 50
            fleet.answer([80], index=1)
            assert len([delta async for delta in deltas]) == 5

    counts = Counter(observer.names)
    counts.subtract({"started": 1, "ended": 1})  # the refused one
    assert counts == {"started": 2, "handed_over": 2, "generated": 2, "ended": 2}
    assert observer.calls[-2:] == [("ended", "length")] * 2


async def test_more_than_the_router_takes_is_refused_for_good(pipeline):
    with pytest.raises(InvalidRequest, match="n is 3, outside 1 to max_concurrent_requests 2"):
        await collect(pipeline, request(n=3))


async def test_continuations_go_where_the_prompt_is():
    async with fleet_of(*[CONFIG] * 4) as (fleet, engines):
        prompt = [*range(400)]
        with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
            pipeline = Pipeline(fleet, tokenizers, Recorder(), BOUNDS_OF_MANY)
            params = SamplingParams(max_tokens=3, seed=1)
            asked = request(tokens(*prompt), model="fake", n=8, sampling_params=params)
            deltas = await collect(pipeline, asked)

    assert {delta.admission.engine for delta in deltas if delta.admission} == {
        engine.address for engine in engines if engine.submissions
    }
    assert sorted(len(engine.submissions) for engine in engines) == [0, 0, 0, 8]
    assert sorted(delta.index for delta in deltas if delta.finish) == list(range(8))


async def test_merged_streams_are_all_closed_at_the_first_error():
    closed = []

    async def stream(number):
        try:
            yield number
            if number:
                raise ValueError(number)
            await asyncio.Event().wait()
        finally:
            closed.append(number)

    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(ValueError, match="1"):
            async for _ in merged([stream(0), stream(1)]):
                pass

    assert sorted(closed) == [0, 1]
