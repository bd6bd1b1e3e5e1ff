import asyncio

import pytest

from engine_service.core.types import Admission, Finish, FinishReason
from engine_service.errors import EngineFailed, SlowReader
from engine_service.server.output_stream import OutputStream
from tests.engine_service.core.fake_executor import tokens


async def test_steps_merge_per_request_while_the_reader_is_busy():
    stream = OutputStream(100)
    stream.add_tokens(1, tokens(10))
    stream.add_tokens(2, tokens(20))
    stream.add_tokens(1, tokens(11, 12))
    batch = await stream.wait()
    assert batch.handles == [1, 2]
    assert batch.token_counts == [3, 1]
    assert list(batch.token_ids) == [10, 11, 12, 20]


async def test_batch_is_taken_once():
    stream = OutputStream(100)
    stream.add_tokens(1, tokens(10))
    await stream.wait()
    stream.wake()
    assert not await stream.wait()
    assert stream.num_buffered == 0


async def test_reader_waits_until_there_is_something():
    stream = OutputStream(100)
    waiting = asyncio.ensure_future(stream.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.add_tokens(1, tokens(10))
    assert (await waiting).handles == [1]


async def test_error_comes_after_what_is_buffered_and_stays():
    stream = OutputStream(100)
    stream.add_tokens(1, tokens(10))
    stream.fail(EngineFailed("gone"))
    stream.fail(SlowReader("later ones do not count"))
    assert (await stream.wait()).handles == [1]
    for _ in range(2):
        with pytest.raises(EngineFailed):
            await stream.wait()


async def test_error_can_drop_what_is_buffered():
    stream = OutputStream(100)
    stream.add_tokens(1, tokens(10))
    stream.fail(SlowReader("full"), keep_outputs=False)
    with pytest.raises(SlowReader):
        await stream.wait()


async def test_stream_is_overfull_past_its_bound_and_not_at_it():
    stream = OutputStream(3)
    stream.add_tokens(1, tokens(1, 2, 3))
    assert not stream.is_overfull
    stream.add_tokens(1, tokens(4))
    assert stream.is_overfull


async def test_events_without_tokens_fill_the_stream_too():
    stream = OutputStream(100)
    for handle in range(10):
        stream.add_failure(handle, EngineFailed("gone"))
    assert stream.is_overfull


async def test_discarding_a_request_leaves_the_others():
    stream = OutputStream(100)
    for handle in (1, 2):
        stream.add_admission(
            handle, Admission(request_id=handle, num_cached_tokens=0, seed=0, queue_seconds=0)
        )
        stream.add_tokens(handle, tokens(handle))
    before = stream.num_buffered
    stream.discard(1)
    assert stream.num_buffered == before / 2
    batch = await stream.wait()
    assert batch.handles == [2]
    assert [handle for handle, _ in batch.admissions] == [2]


async def test_stream_has_more_until_everything_is_taken():
    stream = OutputStream(100)
    assert not stream.has_more
    stream.add_finish(1, Finish(request_id=1, reason=FinishReason.STOP))
    assert stream.has_more
    await stream.wait()
    assert not stream.has_more
