"""Has something sent on streams that are silent, so that no proxy takes them for dead."""

import asyncio
from typing import Protocol

_TICKS = 3
"""A stream is silent for two to three of them when something is sent."""


class Silent(Protocol):
    """A stream.

    Attributes:
        num_silent_ticks: Ticks since something was sent on it; it sets that to 0 then.
    """

    num_silent_ticks: int

    def break_silence(self) -> None:
        """Sends something that tells the client nothing."""


class KeepAlive:
    """Looks at all streams once in a while, so that a message costs one assignment.

    The timer runs only while there are streams.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        """Watches nothing yet.

        Args:
            seconds: The longest silence.
        """
        self._tick_seconds = seconds / _TICKS
        self._streams: set[Silent] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, stream: Silent) -> None:
        """Begins to look at a stream."""
        self._streams.add(stream)
        if self._timer is None:
            self._start()

    def forget(self, stream: Silent) -> None:
        """Looks at a stream no more."""
        self._streams.discard(stream)

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        # A stream may end when something is sent on it.
        for stream in tuple(self._streams):
            stream.num_silent_ticks += 1
            if stream.num_silent_ticks == _TICKS:
                stream.num_silent_ticks = 0
                stream.break_silence()
        if self._streams:
            self._start()
