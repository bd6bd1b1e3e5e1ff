"""Logprobs go on without a seam where the tokens do, and each comes once."""

from contextlib import aclosing
from dataclasses import replace

import pytest

from router.types.engine_events import Admitted, Finished, FinishReason, PromptLogprobs, Tokens
from tests.fakes.fake_engine import expected_tokens
from tests.fakes.fake_logprobs import as_lists, expected_logprobs
from tests.router.fleets import CONFIG, SLOW, Observer, engine_of, fleet_of, request, rest_of

PROMPT = list(range(50))


def check(events, asked, seed=0):
    """Checks a whole answer: every token and every logprob is right, in order, and came once."""
    params, prompt = asked.sampling_params, asked.prompt_token_ids
    admitted, *middle, finished = events
    assert isinstance(admitted, Admitted)
    assert finished == Finished(reason=FinishReason.LENGTH)
    num_of_prompt = sum(isinstance(event, PromptLogprobs) for event in middle)
    check_prompt(middle[:num_of_prompt], prompt, params.prompt_logprobs)
    token_ids = check_tokens(middle[num_of_prompt:], prompt, params.logprobs, seed)
    assert token_ids == expected_tokens(prompt, params.max_tokens, seed=seed)


def check_prompt(events, prompt, num_top):
    position = 1
    for event in events:
        assert event.first_position == position
        end = position + len(event.logprobs.logprobs)
        expected = expected_logprobs(prompt[:position], prompt[position:end], num_top)
        assert as_lists(event.logprobs) == expected
        position = end
    assert position == (1 if num_top is None else len(prompt))


def check_tokens(events, prompt, num_top, seed):
    token_ids = []
    for event in events:
        assert isinstance(event, Tokens)
        if num_top is None:
            assert event.logprobs is None
        else:
            expected = expected_logprobs([*prompt, *token_ids], event.token_ids, num_top, seed)
            assert as_lists(event.logprobs) == expected
        token_ids += event.token_ids
    return token_ids


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7}])
async def test_logprobs_of_an_engine_that_dies_go_on_elsewhere_without_a_seam(params):
    observer = Observer()
    async with fleet_of(SLOW, SLOW, observers=observer) as (fleet, engines):
        asked = request(PROMPT, 60, logprobs=3, prompt_logprobs=1, **params)
        events = fleet.generate(asked)
        start = [await anext(events) for _ in range(4)]
        assert [type(event) for event in start] == [Admitted, PromptLogprobs, Tokens, Tokens]

        engine_of(engines, start[0]).die_after(0)
        rest = await rest_of(events)

        assert len(observer.resumed) == 1
        seed = start[0].seed if params else 0
        check([*start, *rest], asked, seed)
        # The second engine need not compute again what came.
        resumed = next(e for e in engines if e is not engine_of(engines, start[0]))
        (submission,) = resumed.submissions
        assert submission.request.sampling_params.HasField("logprobs")
        assert not submission.request.sampling_params.HasField("prompt_logprobs")


CHUNKED = replace(CONFIG, max_num_batched_tokens=8, prefill_tokens_per_second=2000.0)
"""Computes a prompt in steps of 4 ms."""


@pytest.mark.parametrize("max_tokens", [0, 5])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_logprobs_of_a_prompt_that_came_in_part_do_not_come_again(max_tokens, temperature):
    observer = Observer()
    async with fleet_of(CHUNKED, CHUNKED, observers=observer) as (fleet, engines):
        asked = request(PROMPT, max_tokens, prompt_logprobs=2, temperature=temperature)
        async with aclosing(fleet.generate(asked)) as events:
            start = [await anext(events) for _ in range(2)]
            num_got = len(start[1].logprobs.logprobs)
            assert 0 < num_got < len(PROMPT) - 1

            first = engine_of(engines, start[0])
            await first.restart()
            rest = await rest_of(events)

        seed = start[0].seed if temperature else 0
        check([*start, *rest], asked, seed)
        assert len(observer.retried) == 1
        (second,) = next(e for e in engines if e is not first).submissions
        # The seed was announced with the first logprobs.
        assert second.request.sampling_params.seed == start[0].seed
        assert second.request.sampling_params.prompt_logprobs == 2


async def test_prompt_is_scored_without_a_token():
    async with fleet_of(CONFIG) as (fleet, _):
        for num_prompt_tokens in (1, 2, 50):
            asked = request(PROMPT[:num_prompt_tokens], 0, prompt_logprobs=1)
            check(await rest_of(fleet.generate(asked)), asked)


async def test_requests_with_and_without_logprobs_share_steps():
    kinds = [{}, {"logprobs": 0}, {"logprobs": 5}, {"prompt_logprobs": 3}]
    async with fleet_of(SLOW) as (fleet, _):
        requests = [request(PROMPT, 20, **kind) for kind in kinds]
        streams = [fleet.generate(asked) for asked in requests]
        starts = [await anext(events) for events in streams]
        for asked, start, events in zip(requests, starts, streams, strict=True):
            check([start, *await rest_of(events)], asked)
