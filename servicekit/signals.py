"""Shutdown by SIGTERM or SIGINT: the first signal is graceful, the second immediate."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

from servicekit.process import exit_code_of

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The first signal was received."""


class EndSignals:
    """The signals received so far; created by `end_signals`.

    Attributes:
        exit_code: The process's exit code: 0, or after the second signal 128 plus its number.
    """

    def __init__(self, on_second: Callable[[int], None]) -> None:
        self.exit_code = 0
        self._on_second = on_second
        self._num_received = 0
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._scope: asyncio.Timeout | None = None

    async def wait_first(self) -> None:
        """Waits for the signal for a graceful shutdown."""
        await self._first.wait()

    async def wait_second(self) -> None:
        """Waits for the signal for an immediate shutdown."""
        await self._second.wait()

    @contextlib.asynccontextmanager
    async def interruption(self) -> AsyncIterator[None]:
        """Leaves the block with `Stopped` at the first signal, even if it came earlier."""
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
        """Handles a signal; ignores the third and later ones."""
        self._num_received += 1
        if self._num_received == 1:
            self._first.set()
            if self._scope is not None:
                self._scope.reschedule(0)
        elif self._num_received == 2:
            self.exit_code = exit_code_of(number)
            self._second.set()
            self._on_second(self.exit_code)


def end_signals(on_second: Callable[[int], None]) -> EndSignals:
    """Handles shutdown signals on the running event loop until it is closed.

    A signal during the last moments of a shutdown must not end the process in its own way.

    Args:
        on_second: Called at the second signal with the exit code. It must make the process end
            soon, whatever the graceful shutdown waits for.
    """
    loop = asyncio.get_running_loop()
    signals = EndSignals(on_second)
    for number in _NUMBERS:
        loop.add_signal_handler(number, signals.receive, number)
    return signals
