import asyncio

import pytest

from protos.pagestream.router.v1 import router_pb2 as pb
from router.errors import SlowReader
from router.request.slow_readers import SlowReaders
from router.types.engine_events import Tokens
from router.types.generation import GenerationDelta
from tests.fakes.fake_fleet import FakeFleet
from tests.router.server.test_grpc_server import ADMITTED, TEXT, refusal, serving

NARROW = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
"""Options of a client that lets the server send it little more than it reads."""


class Answer:
    """An answer that notes with what it was ended."""

    def __init__(self):
        self.end = None

    async def deltas(self):
        try:
            while True:
                yield GenerationDelta(text="x")
        except BaseException as error:
            self.end = type(error)
            raise


async def leave_unread(slow_readers, answer, is_sending):
    deltas = answer.deltas()
    async with slow_readers.watch(deltas) as reader:
        await anext(deltas)
        reader.num_ticks = 0
        is_sending.set()
        await asyncio.get_running_loop().create_future()


async def test_message_that_is_left_unread_ends_the_answer_after_so_many_ticks():
    slow_readers, answer, is_sending = SlowReaders(8.0), Answer(), asyncio.Event()
    sending = asyncio.ensure_future(leave_unread(slow_readers, answer, is_sending))
    await is_sending.wait()

    for _ in range(8):
        slow_readers.tick()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not sending.done()
    slow_readers.tick()

    with pytest.raises(SlowReader, match="for more than 8 s") as raised:
        await asyncio.wait_for(sending, 10)
    assert raised.value.status.metadata == {"slow_reader_seconds": "8"}
    assert raised.value.status.retry_after is None


async def test_answer_ends_with_the_same_error_as_its_call():
    slow_readers, answer, is_sending = SlowReaders(0.1), Answer(), asyncio.Event()
    sending = asyncio.ensure_future(leave_unread(slow_readers, answer, is_sending))
    await is_sending.wait()

    for _ in range(5):
        slow_readers.tick()
    with pytest.raises(SlowReader):
        await asyncio.wait_for(sending, 10)

    assert answer.end is SlowReader


async def test_reader_that_waits_for_tokens_is_not_slow():
    slow_readers, answer = SlowReaders(1.0), Answer()
    deltas = answer.deltas()

    async with slow_readers.watch(deltas):
        await anext(deltas)
        for _ in range(100):
            slow_readers.tick()
        await asyncio.sleep(0)

    assert answer.end is GeneratorExit


async def test_cancelled_call_is_no_slow_reader_however_long_its_end_takes():
    slow_readers, is_ending, may_end = SlowReaders(1.0), asyncio.Event(), asyncio.Event()

    async def slow_to_end():
        try:
            yield GenerationDelta(text="x")
        finally:
            is_ending.set()
            await may_end.wait()

    async def send():
        deltas = slow_to_end()
        async with slow_readers.watch(deltas) as reader:
            await anext(deltas)
            reader.num_ticks = 0
            await asyncio.get_running_loop().create_future()

    sending = asyncio.ensure_future(send())
    await asyncio.sleep(0)
    sending.cancel()
    await is_ending.wait()
    for _ in range(100):
        slow_readers.tick()
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 10)


async def test_error_of_the_answer_passes_unchanged():
    async def failing():
        yield GenerationDelta(text="x")
        raise TimeoutError("of its own")

    async def read(deltas):
        async with SlowReaders(1.0).watch(deltas):
            async for _ in deltas:
                pass

    with pytest.raises(TimeoutError, match="of its own"):
        await read(failing())


async def test_client_that_reads_no_more_is_cut_off_and_told_so_when_it_reads_again():
    slow_readers, fleet = SlowReaders(0.2), FakeFleet()
    fleet.put(ADMITTED, *[Tokens(token_ids=[80] * 1000)] * 100)
    async with serving(fleet, slow_readers=slow_readers, client_options=NARROW) as served:
        service, pipeline = served
        ticking = asyncio.ensure_future(slow_readers.run())
        call = service.Generate(pb.GenerateRequest(text=TEXT), timeout=60)
        await call.initial_metadata()

        await asyncio.wait_for(pipeline.wait_idle(), 20)

        assert fleet.num_open == 0
        assert not fleet.events.empty(), "all was read, so that nothing was shown"
        code, error = await refusal(call)
        assert (code.name, error.reason) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
        ticking.cancel()


async def test_client_that_takes_not_even_the_first_message_is_cut_off(caplog):
    slow_readers, fleet = SlowReaders(0.2), FakeFleet()
    fleet.put(Tokens(token_ids=[80] * 10_000))
    async with serving(fleet, slow_readers=slow_readers, client_options=NARROW) as served:
        service, pipeline = served
        ticking = asyncio.ensure_future(slow_readers.run())
        call = service.Generate(pb.GenerateRequest(text=TEXT), timeout=60)
        await call.initial_metadata()

        await asyncio.wait_for(pipeline.wait_idle(), 20)

        assert fleet.num_open == 0
        call.cancel()
        ticking.cancel()
    assert caplog.records == []
