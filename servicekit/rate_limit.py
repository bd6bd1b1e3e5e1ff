"""How often one thing may be said."""


class RateLimit:
    """Lets so many through in each stretch of time, and counts the others.

    Args:
        burst: How many in one stretch.
        interval: Seconds of a stretch, which begins with the first that comes.
    """

    def __init__(self, burst: int, interval: float) -> None:
        self._burst = burst
        self._interval = interval
        self._ends = float("-inf")
        self._num_passed = 0
        self._num_held = 0

    def take(self, now: float) -> int | None:
        """Returns how many were held back since the last that passed, or None to hold this one.

        Args:
            now: Seconds of a clock that never goes back.
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
