"""Ends the answers of clients that leave unread what was sent to them."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from types import TracebackType

from router.errors import SlowReader
from router.types.generation import GenerationDelta

READING = -1
"""`Reader.num_ticks` of a client for which nothing waits."""

_MAX_TICK_SECONDS = 1.0


class Reader:
    """One client.

    Attributes:
        num_ticks: Ticks that passed since a message began to wait for the client: set to 0 when
            one does, and to `READING` when it has gone. A message goes when the window that the
            client opens is wide enough for it.
        limit: Ends what runs within it once it is rescheduled to now.
    """

    __slots__ = ("limit", "num_ticks")

    def __init__(self) -> None:
        self.num_ticks = READING
        self.limit = asyncio.timeout(None)


class SlowReaders:
    """Looks at all clients once in a while, so that a message costs two assignments.

    Time is counted in ticks: when this process itself stood still, its clients are not to blame.

    Attributes:
        seconds: What a message may wait for its client, up to a quarter or a second more.
    """

    def __init__(self, seconds: float) -> None:
        """Watches nobody yet.

        Args:
            seconds: What a message may wait for its client, up to a quarter or a second more.
        """
        self.seconds = seconds
        self._tick_seconds = min(seconds / 4, _MAX_TICK_SECONDS)
        self._max_ticks = math.ceil(seconds / self._tick_seconds)
        self._readers: set[Reader] = set()

    async def run(self) -> None:
        """Ticks until cancelled."""
        while True:
            await asyncio.sleep(self._tick_seconds)
            self.tick()

    def tick(self) -> None:
        """Counts on for all clients that a message waits for, and cuts off those that are slow."""
        for reader in self._readers:
            if reader.num_ticks != READING:
                reader.num_ticks += 1
                # Not at the last tick itself: the first may have come right after the message.
                if reader.num_ticks == self._max_ticks + 1:
                    reader.limit.reschedule(asyncio.get_running_loop().time())

    def watch(self, deltas: AsyncGenerator[GenerationDelta, None]) -> "_Watch":
        """Yields the client that the block sends an answer to, and closes the answer behind it.

        Raises:
            SlowReader: By the block: a message waited for the client too long; the answer ends with
                it, too.
        """
        return _Watch(self._readers, deltas, self._error)

    def _error(self) -> SlowReader:
        return SlowReader(
            f"the client left a message unread for more than {self.seconds:g} s; read faster",
            {"slow_reader_seconds": f"{self.seconds:g}"},
        )


class _Watch(AbstractAsyncContextManager[Reader]):
    """As `SlowReaders.watch` says; a class, as a generator would double what it costs a request."""

    __slots__ = ("_deltas", "_error", "_reader", "_readers")

    def __init__(
        self,
        readers: set[Reader],
        deltas: AsyncGenerator[GenerationDelta, None],
        error: Callable[[], SlowReader],
    ) -> None:
        self._readers = readers
        self._deltas = deltas
        self._error = error
        self._reader = Reader()

    async def __aenter__(self) -> Reader:
        self._readers.add(self._reader)
        await self._reader.limit.__aenter__()
        return self._reader

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.num_ticks = READING
        self._readers.discard(self._reader)
        async with aclosing(self._deltas):
            try:
                await self._reader.limit.__aexit__(kind, error, traceback)
            except TimeoutError:
                too_slow = self._error()
                with suppress(SlowReader, StopAsyncIteration):
                    await self._deltas.athrow(too_slow)
                raise too_slow from None
