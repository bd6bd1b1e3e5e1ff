"""How a service is told to end: by SIGTERM or SIGINT, the first time gently, then at once."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator

from servicekit.process import exit_code_of

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The first signal has come."""


class EndSignals:
    """The signals that have come; `end_signals` makes one.

    Attributes:
        exit_code: Of the process: 0, or after the second signal 128 and its number.
    """

    def __init__(self, on_second: Callable[[int], None]) -> None:
        self.exit_code = 0
        self._on_second = on_second
        self._num_received = 0
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._scope: asyncio.Timeout | None = None

    async def wait_first(self) -> None:
        """Waits for the signal that asks for a good end."""
        await self._first.wait()

    async def wait_second(self) -> None:
        """Waits for the signal that asks for an end at once."""
        await self._second.wait()

    @contextlib.asynccontextmanager
    async def interruption(self) -> AsyncIterator[None]:
        """Leaves the block with `Stopped` at the first signal, also if that has come before."""
        has_come = self._first.is_set
        try:
            async with asyncio.timeout(0 if has_come() else None) as self._scope:
                yield
        except TimeoutError:
            if has_come():
                raise Stopped from None
            raise
        finally:
            self._scope = None

    def receive(self, number: int) -> None:
        """Takes a signal; the third and later are none."""
        self._num_received += 1
        if self._num_received == 1:
            self._first.set()
            if self._scope is not None:
                self._scope.reschedule(0)
        elif self._num_received == 2:
            self.exit_code = exit_code_of(number)
            self._second.set()
            self._on_second(self.exit_code)


@contextlib.contextmanager
def end_signals(on_second: Callable[[int], None]) -> Iterator[EndSignals]:
    """Takes the signals to end, on the running event loop, while its body runs.

    Args:
        on_second: Called at the second signal with the exit code that is due. It sees to it that
            the process ends soon, whatever its orderly end waits for.
    """
    loop = asyncio.get_running_loop()
    signals = EndSignals(on_second)
    for number in _NUMBERS:
        loop.add_signal_handler(number, signals.receive, number)
    try:
        yield signals
    finally:
        for number in _NUMBERS:
            loop.remove_signal_handler(number)
