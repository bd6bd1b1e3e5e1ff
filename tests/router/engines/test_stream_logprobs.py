"""What an engine may say of the logprobs of one connection's requests, and what it may not."""

import math
from dataclasses import replace

import pytest

from protos.pagestream.engine.v1 import engine_pb2 as pb
from router.types.engine_events import Finished, FinishReason, PromptLogprobs, Tokens
from tests.fakes.fake_logprobs import as_lists, as_message, made_up_logprobs
from tests.fakes.hostile_engine import admission, failure, finish, tokens_of
from tests.router.engines.test_open_requests import MODEL, check_violation, opened, say, sent
from tests.router.fleets import rest_of

VOCAB_SIZE = MODEL.vocab_size
STOP = pb.FINISH_REASON_STOP


def logprobs_of(first_position, token_ids, num_top):
    return as_message(made_up_logprobs(first_position, token_ids, num_top, VOCAB_SIZE))


def scored(handle, token_ids, num_top=2, first_position=4, **changes):
    """Returns a step with tokens and their logprobs; changes replace fields of these."""
    step = tokens_of(handle, token_ids)
    own = logprobs_of(first_position, token_ids, num_top)
    for name, values in changes.items():
        own.ClearField(name)
        getattr(own, name).extend(values)
    step.logprobs.add(handle=handle, logprobs=own)
    return step


def of_prompt(handle, first_position, token_ids, num_top=1, **changes):
    own = logprobs_of(first_position, token_ids, num_top)
    for name, values in changes.items():
        own.ClearField(name)
        getattr(own, name).extend(values)
    step = pb.GenerateManyResponse()
    told = pb.PromptLogprobs(first_position=first_position, logprobs=own)
    step.prompt_logprobs.add(handle=handle, prompt_logprobs=told)
    return step


async def test_logprobs_come_with_their_tokens():
    requests = opened()
    stream = sent(requests, logprobs=2)
    plain = sent(requests)
    say(requests, admission(1), admission(2), scored(1, [7, 599]), tokens_of(2, [5] * 5))
    # One step for both.
    step = scored(1, [0, 1, 2], first_position=6)
    step.MergeFrom(finish(2))
    say(requests, step, finish(1))

    _, event, end = await rest_of(stream)
    assert event.token_ids == [7, 599, 0, 1, 2]
    assert as_lists(event.logprobs) == made_up_logprobs(4, event.token_ids, 2, VOCAB_SIZE)
    assert end == Finished(reason=FinishReason.LENGTH)
    _, event, _ = await rest_of(plain)
    assert event == Tokens(token_ids=[5] * 5, is_last=True)


async def test_zero_candidates_are_the_logprobs_of_the_tokens_alone():
    requests = opened()
    stream = sent(requests, logprobs=0)
    say(requests, admission(1), scored(1, [7] * 5, num_top=0), finish(1))

    _, event, _ = await rest_of(stream)
    assert as_lists(event.logprobs) == made_up_logprobs(4, [7] * 5, 0)
    assert len(event.logprobs.top_token_ids) == 0


async def test_there_are_no_more_candidates_than_tokens_in_the_vocabulary():
    requests = opened(replace(MODEL, vocab_size=3))
    stream = sent(requests, num_prompt=3, logprobs=20)
    say(requests, admission(1))
    step = tokens_of(1, [2])
    step.logprobs.add(handle=1, logprobs=as_message(made_up_logprobs(3, [2], 20, 3)))
    say(requests, step)

    _, event = [await anext(stream) for _ in range(2)]
    assert sorted(event.logprobs.top_token_ids) == [0, 1, 2]


async def test_minus_infinity_and_rounding_above_zero_are_logprobs():
    requests = opened()
    stream = sent(requests, logprobs=1)
    step = scored(1, [7], num_top=1, logprobs=[-math.inf], top_logprobs=[1e-6])
    say(requests, admission(1), step)

    _, event = [await anext(stream) for _ in range(2)]
    assert list(event.logprobs.logprobs) == [-math.inf]


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (tokens_of(1, [7]), "tokens of request 1 came without their logprobs"),
        (scored(2, [7]), "logprobs of request 2 were not asked for"),
        (scored(1, [7, 8], logprobs=[-1]), "request 1 got 1 logprobs for 2 tokens"),
        (scored(1, [7], logprobs=[]), "got 0 logprobs for 1 tokens"),
        (
            scored(1, [7], num_top=1),
            "got 1 top_token_ids for 1 tokens, not 2, that is 2 for each",
        ),
        (scored(1, [7], num_top=3), "got 3 top_token_ids"),
        (scored(1, [7], top_logprobs=[-1]), "got 1 top_logprobs"),
        (scored(1, [7], top_token_ids=[0, 600]), "candidate 600, outside 0 to 599"),
        (scored(1, [7], top_token_ids=[2**32 - 1, 0]), "candidate 4294967295"),
        (scored(1, [7], logprobs=[math.nan]), "logprob nan, outside -infinity to 0"),
        (scored(1, [7], logprobs=[math.inf]), "logprob inf"),
        (scored(1, [7], logprobs=[0.5]), r"logprob 0\.5"),
        (scored(1, [7], top_logprobs=[-math.inf, math.nan]), "logprob nan"),
        (scored(1, [7], top_logprobs=[math.inf, -math.inf]), "logprob inf"),
    ],
)
async def test_wrong_logprobs_are_a_violation(step, text):
    requests = opened()
    stream = sent(requests, logprobs=2)
    sent(requests)
    say(requests, admission(1), admission(2))

    check_violation(requests, step, text)

    stream.close()
    assert [type(event).__name__ for event in await rest_of(stream)] == ["Admitted"]


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        (pb.GenerateManyResponse(), "a step has logprobs, but no tokens"),
        (tokens_of(2, [5]), "logprobs of request 1, but no tokens of it"),
    ],
)
async def test_logprobs_without_their_tokens_are_a_violation(rest, text):
    requests = opened()
    sent(requests, logprobs=0)
    sent(requests)
    say(requests, admission(1), admission(2))
    step = pb.GenerateManyResponse(logprobs=scored(1, [7], num_top=0).logprobs)
    step.MergeFrom(rest)

    check_violation(requests, step, text)


async def test_logprobs_of_one_request_in_two_places_are_a_violation():
    requests = opened()
    sent(requests, logprobs=0)
    say(requests, admission(1))
    step = scored(1, [7], num_top=0)
    step.logprobs.add().CopyFrom(step.logprobs[0])
    check_violation(requests, step, "logprobs of one request in several places")


async def test_logprobs_of_the_prompt_come_before_the_first_token():
    requests = opened()
    stream = sent(requests, num_prompt=6, prompt_logprobs=1)
    say(requests, admission(1), of_prompt(1, 1, [1, 2]), of_prompt(1, 3, [3, 4, 5]))
    say(requests, tokens_of(1, [7] * 5), finish(1))

    _, event, tokens, _ = await rest_of(stream)
    assert event.first_position == 1
    assert as_lists(event.logprobs) == made_up_logprobs(1, [1, 2, 3, 4, 5], 1, VOCAB_SIZE)
    assert tokens == Tokens(token_ids=[7] * 5, is_last=True)


async def test_prompt_is_scored_without_a_token():
    requests = opened()
    stream = sent(requests, num_prompt=3, prompt_logprobs=0, max_tokens=0)
    say(requests, admission(1), of_prompt(1, 1, [1, 2], num_top=0), finish(1))

    _, event, end = await rest_of(stream)
    assert isinstance(event, PromptLogprobs)
    assert end == Finished(reason=FinishReason.LENGTH)


async def test_prompt_of_one_token_has_no_logprobs():
    requests = opened()
    stream = sent(requests, num_prompt=1, prompt_logprobs=0, max_tokens=0)
    say(requests, admission(1), finish(1))

    assert len(await rest_of(stream)) == 2


async def test_request_without_tokens_gets_none():
    requests = opened()
    sent(requests, num_prompt=1, prompt_logprobs=0, max_tokens=0)
    say(requests, admission(1))

    check_violation(requests, tokens_of(1, [7]), "got 1 tokens, over 0")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([of_prompt(1, 1, [1])], "came before its admission"),
        ([admission(1), of_prompt(1, 0, [0, 1])], "begin at position 0, not 1"),
        ([admission(1), of_prompt(1, -1, [0, 1])], "begin at position -1, not 1"),
        ([admission(1), of_prompt(1, 2, [2])], "begin at position 2, not 1"),
        ([admission(1), of_prompt(1, 1, [1]), of_prompt(1, 1, [1])], "position 1, not 2"),
        ([admission(1), of_prompt(1, 1, [1, 2, 3, 4])], "4 tokens of its prompt, outside 1 to 3"),
        ([admission(1), of_prompt(1, 1, [])], "0 tokens of its prompt"),
        ([admission(1), of_prompt(1, 1, [1, 2, 3]), of_prompt(1, 4, [])], "outside 1 to 0"),
        ([admission(1), of_prompt(1, 1, [1], num_top=2)], "got 2 top_token_ids"),
        ([admission(1), of_prompt(1, 1, [1], logprobs=[math.nan])], "logprob nan"),
        ([admission(1), of_prompt(1, 1, [1], top_token_ids=[600])], "candidate 600"),
        ([admission(1), of_prompt(1, 1, [1]), tokens_of(1, [7])], "2 tokens of the prompt"),
        ([admission(1), tokens_of(1, [7])], "logprobs of 3 tokens of the prompt of request 1"),
        ([admission(1), finish(1, STOP, stop_token_id=1)], "are missing"),
        (
            [admission(1), of_prompt(1, 1, [1, 2, 3]), tokens_of(1, [7]), of_prompt(1, 4, [4])],
            "came after a token",
        ),
        ([admission(2), of_prompt(2, 1, [1])], "prompt of request 2 were not asked for"),
        ([of_prompt(3, 1, [1])], "request 3, which was never sent"),
        ([admission(1), of_prompt(1, 1, [1, 2, 3]), scored(1, [7])], "were not asked for"),
    ],
)
async def test_wrong_logprobs_of_a_prompt_are_a_violation(steps, text):
    requests = opened()
    sent(requests, prompt_logprobs=1)
    sent(requests)
    say(requests, *steps[:-1])

    check_violation(requests, steps[-1], text)


async def test_request_that_its_resumed_tokens_end_needs_no_logprobs():
    requests = opened()
    stream = sent(requests, resumed=[9] * 5, prompt_logprobs=1, logprobs=1)
    say(requests, finish(1))

    assert await rest_of(stream) == [Finished(reason=FinishReason.LENGTH)]


async def test_late_logprobs_of_a_cancelled_request_are_passed_over():
    requests = opened()
    both = {"logprobs": 0, "prompt_logprobs": 0}
    early, running = sent(requests, **both), sent(requests, **both)
    say(requests, admission(2), of_prompt(2, 1, [1], num_top=0))
    early.close()
    running.close()

    say(requests, admission(1), of_prompt(1, 1, [1, 2, 3]), scored(1, [7] * 5, num_top=1))
    say(requests, of_prompt(2, 2, [2, 3]), scored(2, [7] * 5), finish(1), failure(2, 4))
    # One more event could still have been under way.
    say(requests, admission(2))
    check_violation(requests, of_prompt(1, 1, [1]), "which has ended")


async def test_reader_that_is_behind_may_be_so_by_fewer_tokens_the_more_candidates_each_has():
    for num_top, num_most in ((0, 100), (5, 50), (20, 20), (100, 4)):
        requests = opened(max_buffered_tokens=100)
        stream = sent(requests, logprobs=num_top, max_tokens=1000)
        say(requests, admission(1))
        # Those of the last message are not counted until the next comes.
        for position in range(num_most + 1):
            say(requests, scored(1, [7], num_top, 4 + position))
        assert len(requests) == 1
        say(requests, scored(1, [7], num_top, 4 + num_most + 1))
        assert len(requests) == 0
        with pytest.raises(Exception, match=f"more than {num_most} tokens wait"):
            await rest_of(stream)
