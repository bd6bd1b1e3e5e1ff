"""How long to wait before what has ended is started again."""

_FIRST_SECONDS = 1.0
_MAX_SECONDS = 60.0
_LONG_SECONDS = 60.0
"""What ran for so long is started again at once."""


class Backoff:
    """At once, then after a second, then twice as long each time, up to a minute."""

    def __init__(self) -> None:
        self._next = 0.0

    def seconds_after(self, ran_seconds: float) -> float:
        """Returns the time to wait.

        Args:
            ran_seconds: How long it ran before it ended.
        """
        seconds = 0.0 if ran_seconds >= _LONG_SECONDS else self._next
        self._next = min(max(2 * seconds, _FIRST_SECONDS), _MAX_SECONDS)
        return seconds
