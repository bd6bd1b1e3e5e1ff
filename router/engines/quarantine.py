"""How long a misbehaving engine gets no requests."""

import time

_MIN_SECONDS = 5.0
_MAX_SECONDS = 60.0


class Quarantine:
    """Lasts 5 s at first, and twice as long each time it begins within a minute of the last end.

    Attributes:
        is_on: Whether the engine is quarantined, until `end`: time alone does not end it.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._seconds = 0.0
        self._is_waited = True
        self._ended_at = float("-inf")

    def begin(self) -> None:
        """Notes that the engine misbehaved."""
        if not self.is_on and time.monotonic() > self._ended_at + _MAX_SECONDS:
            self._seconds = 0.0
        self._seconds = min(max(_MIN_SECONDS, 2 * self._seconds), _MAX_SECONDS)
        self.is_on, self._is_waited = True, False

    def take_wait(self) -> float:
        """Returns the seconds to wait before the engine's health check; 0 on further calls."""
        if self._is_waited:
            return 0.0
        self._is_waited = True
        return self._seconds

    def end(self) -> None:
        """Notes that the engine reports that it is healthy."""
        self.is_on = False
        self._ended_at = time.monotonic()
