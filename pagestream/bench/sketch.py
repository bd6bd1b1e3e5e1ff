"""Percentiles of any number of values within a bounded memory."""

import math
from collections.abc import Iterator

_GROWTH = math.log(1.02)
"""Of a bucket over the one before: a percentile is off by one part in a hundred at most."""
_LEAST, _MOST = 1e-6, 1e6
"""Seconds that have buckets of their own."""


class Sketch:
    """Counts values in buckets whose bounds grow geometrically; some 1,400 at most."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = 0.0
        self._buckets: dict[int, int] = {}

    def add(self, value: float, count: int = 1) -> None:
        """Adds a value, at least 0, that occurred so often."""
        self.count += count
        self.total += value * count
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        index = math.floor(math.log(min(max(value, _LEAST), _MOST)) / _GROWTH)
        self._buckets[index] = self._buckets.get(index, 0) + count

    @property
    def mean(self) -> float:
        """The mean; there is at least one value."""
        return self.total / self.count

    def percentile(self, share: float) -> float:
        """Returns the value that a share of all, from 0 to 1, does not exceed."""
        wanted = share * self.count
        reached = 0
        for value, count in self:
            reached += count
            if reached >= wanted:
                return value
        return self.maximum

    def __iter__(self) -> Iterator[tuple[float, int]]:
        """Yields the values in order, as far as they are told apart, each with its number."""
        for index in sorted(self._buckets):
            value = math.exp((index + 0.5) * _GROWTH)
            yield min(max(value, self.minimum), self.maximum), self._buckets[index]
