"""A token bucket: so much in a minute, and as much at once."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
_MINUTE = 60.0


class Bucket:
    """Holds what may be taken now, and fills up again at a steady rate.

    Attributes:
        per_minute: What it holds when it is full, and what flows in within a minute.
    """

    __slots__ = ("_clock", "_level", "_time", "per_minute")

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        """Is full.

        Args:
            per_minute: What it holds, and what flows in within a minute.
            clock: Returns seconds; tests set it.
        """
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._time = clock()

    @property
    def level(self) -> float:
        """What may be taken now; below 0 if more was used than had been taken."""
        now = self._clock()
        level = self._level + (now - self._time) * self.per_minute / _MINUTE
        self._level = level if level < self.per_minute else float(self.per_minute)
        self._time = now
        return self._level

    def set_rate(self, per_minute: int) -> None:
        """Changes what it holds; what is missing now stays missing."""
        missing = self.per_minute - self.level
        self.per_minute = per_minute
        self._level = per_minute - missing

    def seconds_until(self, amount: float) -> float:
        """Returns the seconds until an amount, which is no more than it holds, may be taken."""
        return max(0.0, (amount - self.level) * _MINUTE / self.per_minute)

    def take(self, amount: int) -> bool:
        """Takes an amount if there is that much; returns whether it did."""
        if amount > self.level:
            return False
        self._level -= amount
        return True

    def add(self, amount: float) -> None:
        """Gives an amount back, or takes it if it is below 0, whatever there is."""
        self._level = min(float(self.per_minute), self.level + amount)
