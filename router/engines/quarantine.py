"""How long a misbehaving engine is left alone."""

import time

_MIN_SECONDS = 5.0
_MAX_SECONDS = 60.0


class Quarantine:
    """Lasts 5 s at first, and twice as long each time it begins within a minute of the last end."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ended_at = float("-inf")

    def begin(self) -> float:
        """Notes that the engine misbehaved; returns the seconds to wait before its health check."""
        if time.monotonic() > self._ended_at + _MAX_SECONDS:
            self._seconds = 0.0
        self._seconds = min(max(_MIN_SECONDS, 2 * self._seconds), _MAX_SECONDS)
        # What it does before the end is no new start.
        self._ended_at = float("inf")
        return self._seconds

    def end(self) -> None:
        """Notes that the engine reports that it is healthy."""
        self._ended_at = time.monotonic()
