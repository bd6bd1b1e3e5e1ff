import asyncio
import contextlib
import multiprocessing

import pytest

from engine_service.core.types import Admission, Finish, FinishReason, Request, StepOutput
from engine_service.errors import Draining, EngineFailed, QueueFull, core_frozen
from engine_service.server.core_client import CoreClient
from tests.engine_service.core.fake_executor import make_info, tokens

WAIT_SECONDS = 20.0


class Counts:
    """An observer that remembers how requests ended."""

    def __init__(self):
        self.outcomes = []

    def count_admission(self, request, admission):
        pass

    def count_tokens(self, request, num_tokens, now):
        pass

    def count_refusal(self, outcome):
        self.outcomes.append(outcome)

    def count_slow_reader(self):
        pass

    def count_end(self, request, outcome, now):
        self.outcomes.append(outcome)


class Harness:
    """A client, and the core's end of its pipe."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.counts = Counts()
        self.client = None
        self.steps = asyncio.Semaphore(0)

    def submit(self, stream, handle, **fields):
        request = Request(
            request_id=self.client.next_request_id(), prompt_token_ids=tokens(1), arrival_time=1.0
        )
        self.client.submit(stream, handle, request, name=f"request {handle}", **fields)
        return request

    async def step(self, **fields):
        """Lets the core say something and waits until the client has heard it."""
        self.pipe.send(StepOutput(**fields))
        await asyncio.wait_for(self.steps.acquire(), WAIT_SECONDS)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running_client(max_waiting_requests=10):
    ours, theirs = multiprocessing.Pipe()
    harness = Harness(theirs)
    harness.client = CoreClient(
        ours,
        max_waiting_requests=max_waiting_requests,
        observer=harness.counts,
        on_step=lambda output: harness.steps.release(),
    )
    theirs.send(make_info())
    try:
        assert await harness.client.start() == make_info()
        yield harness
    finally:
        harness.client.close()
        await asyncio.to_thread(harness.client.join, WAIT_SECONDS)
        theirs.close()


async def test_cancelled_request_sends_nothing_that_was_not_taken():
    async with running_client() as harness:
        stream = harness.client.open_stream(100)
        one, two = harness.submit(stream, 1), harness.submit(stream, 2)
        await harness.step(
            request_ids=tokens(one.request_id, two.request_id),
            token_counts=tokens(1, 1),
            token_ids=tokens(11, 22),
        )
        harness.client.cancel(stream, 1)
        batch = await stream.wait()
        assert (batch.handles, list(batch.token_ids)) == ([2], [22])


async def test_place_in_the_queue_is_free_again_after_each_kind_of_end():
    async with running_client(max_waiting_requests=1) as harness:
        stream = harness.client.open_stream(1000)
        for _ in range(3):
            # Ends after it was admitted, then before.
            request = harness.submit(stream, 1)
            with pytest.raises(QueueFull):
                harness.submit(stream, 2)
            admission = Admission(
                request_id=request.request_id, num_cached_tokens=0, seed=0, queue_seconds=0.0
            )
            await harness.step(admissions=[admission])
            harness.submit(stream, 2)
            with pytest.raises(QueueFull):
                harness.submit(stream, 3)
            finish = Finish(request_id=request.request_id, reason=FinishReason.STOP)
            await harness.step(finishes=[finish])
            with pytest.raises(QueueFull):
                harness.submit(stream, 3)
            harness.client.cancel(stream, 2)
        assert harness.counts.outcomes == ["stop", "cancelled"] * 3


async def test_suspension_ends_all_streams_and_lasts_until_it_is_lifted():
    async with running_client() as harness:
        client = harness.client
        stream = client.open_stream(100)
        stale = harness.submit(stream, 1)
        client.suspend(core_frozen())

        late = client.open_stream(100)
        for ended in (stream, late):
            with pytest.raises(EngineFailed):
                await ended.wait()
        with pytest.raises(EngineFailed):
            harness.submit(late, 1)
        assert (client.num_open, client.num_waiting_tokens) == (0, 0)
        assert harness.counts.outcomes == ["engine_failed"]

        client.resume()
        stream = client.open_stream(100)
        request = harness.submit(stream, 1)
        # What the core says of the old request falls away.
        await harness.step(
            request_ids=tokens(stale.request_id, request.request_id),
            token_counts=tokens(1, 1),
            token_ids=tokens(11, 22),
        )
        assert list((await stream.wait()).token_ids) == [22]


async def test_suspension_by_the_core_s_end_is_not_lifted():
    async with running_client() as harness:
        client = harness.client
        client.suspend(core_frozen())
        harness.pipe.close()
        await asyncio.wait_for(client.wait_lost(), WAIT_SECONDS)
        client.resume()
        with pytest.raises(EngineFailed):
            await client.open_stream(100).wait()


async def test_waiting_tokens_are_those_of_requests_that_the_core_has_not_begun_with():
    async with running_client() as harness:
        client = harness.client
        stream = client.open_stream(100)
        requests = [harness.submit(stream, handle) for handle in range(3)]
        assert client.num_waiting_tokens == 3
        admission = Admission(
            request_id=requests[0].request_id, num_cached_tokens=0, seed=0, queue_seconds=0.0
        )
        await harness.step(admissions=[admission])
        assert client.num_waiting_tokens == 2
        client.cancel(stream, 1)
        assert client.num_waiting_tokens == 1
        client.close_stream(stream)
        assert client.num_waiting_tokens == 0


async def test_finished_request_does_not_time_out():
    async with running_client() as harness:
        stream = harness.client.open_stream(100)
        request = harness.submit(stream, 1, timeout=0.05)
        opened = stream.open_requests[1]
        await harness.step(
            finishes=[Finish(request_id=request.request_id, reason=FinishReason.STOP)]
        )
        assert opened.timer.cancelled()
        assert harness.counts.outcomes == ["stop"]


async def test_client_is_idle_when_the_last_request_has_ended():
    async with running_client() as harness:
        stream = harness.client.open_stream(100)
        await asyncio.wait_for(harness.client.wait_idle(), WAIT_SECONDS)
        harness.submit(stream, 1)
        harness.submit(stream, 2)
        waiting = asyncio.ensure_future(harness.client.wait_idle())
        harness.client.cancel(stream, 1)
        await asyncio.sleep(0)
        assert not waiting.done()
        harness.client.cancel(stream, 2)
        await asyncio.wait_for(waiting, WAIT_SECONDS)
        assert harness.client.num_open == 0


async def test_failing_all_ends_each_request_once():
    async with running_client() as harness:
        streams = [harness.client.open_stream(100) for _ in range(2)]
        for stream in streams:
            harness.submit(stream, 1)
        harness.client.fail_all(Draining("exiting"))
        for stream in streams:
            with pytest.raises(Draining):
                await stream.wait()
            harness.client.close_stream(stream)
        assert harness.counts.outcomes == ["draining"] * 2


async def test_request_cancelled_before_the_core_saw_it_never_reaches_it():
    async with running_client() as harness:
        stream = harness.client.open_stream(100)
        channel = harness.client._channel
        # Held, the writer cannot send before the cancellation.
        with channel._changed:
            harness.submit(stream, 1)
            harness.client.cancel(stream, 1)
            kept = harness.submit(stream, 2)
        message = await asyncio.to_thread(harness.pipe.recv)
        assert [request.request_id for request in message.requests] == [kept.request_id]
        assert message.cancelled_ids == []
