"""A limit on how often something may be logged."""


class RateLimit:
    """Passes up to `burst` events per interval and counts the others.

    Args:
        burst: Events per interval.
        interval: Length in seconds; an interval begins with its first event.
    """

    def __init__(self, burst: int, interval: float) -> None:
        self._burst = burst
        self._interval = interval
        self._ends = float("-inf")
        self._num_passed = 0
        self._num_held = 0

    def take(self, now: float) -> int | None:
        """Returns how many events were suppressed since the last that passed, or None to suppress.

        Args:
            now: Seconds of a monotonic clock.
        """
        if now >= self._ends:
            self._ends = now + self._interval
            self._num_passed = 0
        if self._num_passed == self._burst:
            self._num_held += 1
            return None
        self._num_passed += 1
        held, self._num_held = self._num_held, 0
        return held
