from array import array
from dataclasses import replace

import pytest

from protos.wire.status import Reason, error_status
from router.engines import request_stream
from router.engines.request_stream import RequestStream
from router.errors import EngineError, QueueFull, SlowReader
from router.types.engine_events import (
    Admitted,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
    Tokens,
)
from tests.fakes.fake_logprobs import as_lists, made_up_logprobs
from tests.router.fleets import rest_of


def stream_of(cancel=lambda: None, max_buffered_tokens=10):
    return RequestStream("e:1", cancel, max_buffered_tokens)


def test_admission_that_is_followed_says_the_same_otherwise():
    admitted = Admitted(engine="e:1", num_cached_tokens=3, seed=7)

    assert admitted.followed() == replace(admitted, is_followed=True)


async def test_tokens_merge_while_the_reader_is_behind():
    stream = stream_of()
    stream.admit(4, 7)
    stream.add_tokens([1, 2])
    stream.add_tokens([3])
    stream.end(Finished(reason=FinishReason.LENGTH))

    assert await rest_of(stream) == [
        Admitted(engine="e:1", num_cached_tokens=4, seed=7),
        Tokens(token_ids=[1, 2, 3], is_last=True),
        Finished(reason=FinishReason.LENGTH),
    ]


@pytest.mark.parametrize("num_top", [None, 0])
async def test_tokens_are_the_last_if_nothing_but_the_finish_waits(num_top):
    stream = stream_of(max_buffered_tokens=5000)

    def add(*token_ids):
        if num_top is None:
            stream.add_tokens(list(token_ids))
        else:
            logprobs = TokenLogprobs(logprobs=[-1.0] * len(token_ids))
            stream.add_tokens_with_logprobs(list(token_ids), logprobs)

    add(1)
    first = await anext(stream)
    add(*range(2050))
    stream.end(Finished(reason=FinishReason.LENGTH))
    rest = await rest_of(stream)

    assert not first.is_last
    # More than one message may hold.
    assert [len(event.token_ids) for event in rest[:-1]] == [2048, 2]
    assert [event.is_last for event in rest[:-1]] == [False, True]


async def test_tokens_before_an_error_are_not_the_last():
    stream = stream_of()
    stream.add_tokens([1])
    stream.end(EngineError(error_status(Reason.INTERNAL, "broken", domain="test")))

    assert not (await anext(stream)).is_last


async def test_events_already_handed_out_do_not_change():
    stream = stream_of()
    stream.add_tokens([1])
    first = await anext(stream)
    stream.add_tokens([2])
    stream.add_tokens([3])

    assert (first.token_ids, (await anext(stream)).token_ids) == ([1], [2, 3])


async def test_reader_too_far_behind_is_cut_off_and_its_request_cancelled():
    cancelled = []
    stream = stream_of(lambda: cancelled.append(True), max_buffered_tokens=3)
    for token in range(5):
        stream.add_tokens([token])

    with pytest.raises(SlowReader) as raised:
        await anext(stream)

    assert raised.value.status.metadata == {"max_buffered_tokens": "3"}
    assert cancelled == [True]


async def test_reader_who_has_read_all_is_not_cut_off_however_many_tokens_come_at_once():
    cancelled = []
    stream = stream_of(lambda: cancelled.append(True), max_buffered_tokens=3)
    for first in (0, 10):
        many = list(range(first, first + 10))
        stream.add_tokens(many)
        assert (await anext(stream)).token_ids == many
    assert not cancelled

    stream.add_tokens([1, 2, 3, 4])
    stream.add_tokens([5])

    with pytest.raises(SlowReader):
        await anext(stream)
    assert cancelled == [True]


async def test_many_waiting_tokens_come_in_events_of_bounded_size():
    stream = stream_of(max_buffered_tokens=10_000)
    stream.add_tokens(list(range(3000)))
    stream.add_tokens(list(range(3000, 5000)))
    stream.end(Finished(reason=FinishReason.LENGTH))

    *events, finished = await rest_of(stream)

    assert [len(event.token_ids) for event in events] == [2048, 2048, 904]
    assert [token for event in events for token in event.token_ids] == list(range(5000))
    assert finished == Finished(reason=FinishReason.LENGTH)


async def test_failure_comes_after_the_tokens_before_it():
    stream = stream_of()
    stream.add_tokens([1])
    stream.end(QueueFull("full"))

    assert await anext(stream) == Tokens(token_ids=[1])
    with pytest.raises(QueueFull):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_closing_cancels_once_and_not_after_the_end():
    cancelled = []
    open_stream = stream_of(lambda: cancelled.append("open"))
    ended = stream_of(lambda: cancelled.append("ended"))
    ended.end(Finished(reason=FinishReason.LENGTH))

    for stream in (open_stream, open_stream, ended):
        stream.close()

    assert cancelled == ["open"]


def logprobs(first_position, token_ids, num_top):
    expected = made_up_logprobs(first_position, token_ids, num_top)
    return TokenLogprobs(
        logprobs=array("f", expected.logprobs),
        top_token_ids=array("I", expected.top_token_ids),
        top_logprobs=array("f", expected.top_logprobs),
    )


async def test_logprobs_merge_and_stay_with_their_tokens():
    stream = stream_of(max_buffered_tokens=10_000)
    token_ids = list(range(1000))
    for start in range(0, 1000, 10):
        own = token_ids[start : start + 10]
        stream.add_tokens_with_logprobs(own, logprobs(start, own, 3))
    stream.end(Finished(reason=FinishReason.LENGTH))

    *events, _ = await rest_of(stream)

    assert [len(event.token_ids) for event in events] == [512, 488]
    position = 0
    for event in events:
        expected = made_up_logprobs(position, event.token_ids, 3)
        assert as_lists(event.logprobs) == expected
        position += len(event.token_ids)


async def test_logprobs_of_the_prompt_merge_and_come_first():
    stream = stream_of(max_buffered_tokens=10_000)
    for first, last in ((1, 700), (700, 2501)):
        own = logprobs(first, range(first, last), 1)
        stream.add_prompt_logprobs(PromptLogprobs(first_position=first, logprobs=own))
    stream.add_tokens([5])

    events = [await anext(stream) for _ in range(4)]

    assert [event.first_position for event in events[:3]] == [1, 1025, 2049]
    for event in events[:3]:
        first, count = event.first_position, len(event.logprobs.logprobs)
        assert as_lists(event.logprobs) == made_up_logprobs(first, range(first, first + count), 1)
    assert sum(len(event.logprobs.logprobs) for event in events[:3]) == 2500
    assert events[3] == Tokens(token_ids=[5])


async def test_reader_too_far_behind_the_logprobs_of_a_prompt_is_cut_off(monkeypatch):
    monkeypatch.setattr(request_stream, "_MAX_PROMPT_BYTES", 100)
    cancelled = []
    stream = stream_of(lambda: cancelled.append(True))

    def add(first_position):
        own = logprobs(first_position, [7] * 20, 0)
        stream.add_prompt_logprobs(PromptLogprobs(first_position=first_position, logprobs=own))

    add(1)
    add(21)
    assert not cancelled
    add(41)
    add(61)

    with pytest.raises(SlowReader, match="logprobs of 40 tokens of the prompt wait"):
        await anext(stream)
    assert cancelled == [True]
