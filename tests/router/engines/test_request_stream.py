import pytest

from router.engines.request_stream import RequestStream
from router.errors import QueueFull, SlowReader
from router.types import Admitted, Finished, FinishReason, Tokens
from tests.router.fleets import rest_of


def stream_of(cancel=lambda: None, max_buffered_tokens=10):
    return RequestStream("e:1", cancel, max_buffered_tokens)


async def test_tokens_merge_while_the_reader_is_behind():
    stream = stream_of()
    stream.admit(4, 7)
    stream.add_tokens([1, 2])
    stream.add_tokens([3])
    stream.end(Finished(reason=FinishReason.LENGTH))

    assert await rest_of(stream) == [
        Admitted(engine="e:1", num_cached_tokens=4, seed=7),
        Tokens(token_ids=[1, 2, 3]),
        Finished(reason=FinishReason.LENGTH),
    ]


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


async def test_first_tokens_are_no_more_than_may_wait():
    cancelled = []
    stream = stream_of(lambda: cancelled.append(True), max_buffered_tokens=3)
    stream.add_tokens([1, 2, 3, 4])

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
