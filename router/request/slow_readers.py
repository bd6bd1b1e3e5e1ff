"""Ends the answers of clients that leave unread what was sent to them."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

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

    @asynccontextmanager
    async def watch(self, deltas: AsyncGenerator[GenerationDelta, None]) -> AsyncIterator[Reader]:
        """Yields the client that the block sends an answer to, and closes the answer behind it.

        Raises:
            SlowReader: A message waited for the client too long; the answer ends with it, too.
        """
        reader = Reader()
        self._readers.add(reader)
        try:
            async with aclosing(deltas):
                try:
                    async with reader.limit:
                        try:
                            yield reader
                        finally:
                            reader.num_ticks = READING
                except TimeoutError:
                    if not reader.limit.expired():
                        raise
                    error = self._error()
                    with suppress(SlowReader, StopAsyncIteration):
                        await deltas.athrow(error)
                    raise error from None
        finally:
            self._readers.discard(reader)

    def _error(self) -> SlowReader:
        return SlowReader(
            f"the client left a message unread for more than {self.seconds:g} s; read faster",
            {"slow_reader_seconds": f"{self.seconds:g}"},
        )
