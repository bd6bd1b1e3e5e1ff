"""Rates and percentiles of the last seconds, from pages of metrics read one after the other."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pagestream.top.metrics_page import Page

WINDOW_SECONDS = 10.0
_Value = Callable[[Page], float | None]
_GOOD_OUTCOMES = {"stop", "length", "tool_calls", "cancelled"}
"""The last is the client's doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds that half, and nine tenths, of the values do not exceed; None if there were none."""

    p50: float | None = None
    p90: float | None = None


class Window:
    """The pages of one service within the last seconds."""

    def __init__(self) -> None:
        self._pages: deque[tuple[float, Page]] = deque()

    def add(self, moment: float, page: Page) -> None:
        """Adds a page that was read at a moment, in seconds; forgets those that are too old."""
        self._pages.append((moment, page))
        while len(self._pages) > 2 and self._pages[0][0] < moment - WINDOW_SECONDS:
            self._pages.popleft()

    @property
    def last(self) -> Page | None:
        """The last page."""
        return self._pages[-1][1] if self._pages else None

    def rate(self, counter: str) -> float | None:
        """Returns by how much a counter grew in a second."""
        return self._per_second(self.growth(counter))

    def growth(self, counter: str) -> float | None:
        """Returns by how much a counter grew."""
        return self._growth(lambda page: page.counters.get(counter))

    def share(self, part: str, whole: str) -> float | None:
        """Returns the growth of one counter by that of another, from 0 to 1."""
        grown, all_ = self.growth(part), self.growth(whole)
        return min(1.0, grown / all_) if grown is not None and all_ else None

    def requests(self) -> float | None:
        """Returns the requests that ended in a second."""
        return self._per_second(self._growth(lambda page: _sum(page.outcomes.values())))

    def failures(self) -> float | None:
        """Returns the same of those that failed."""
        return self._per_second(self._growth(lambda page: _sum(_failed(page))))

    def latency(self, histogram: str) -> Latency:
        """Returns percentiles of a histogram's new values."""
        if len(self._pages) < 2:
            return Latency()
        new = self._pages[-1][1].buckets.get(histogram, {})
        old = self._pages[0][1].buckets.get(histogram, {})
        grown = sorted((bound, count - old.get(bound, 0.0)) for bound, count in new.items())
        return Latency(p50=_percentile(grown, 0.5), p90=_percentile(grown, 0.9))

    def _growth(self, value: _Value) -> float | None:
        if len(self._pages) < 2:
            return None
        new, old = value(self._pages[-1][1]), value(self._pages[0][1])
        if new is None or old is None:
            return None
        # Below zero: the service has been started anew.
        return new - old if 0 <= new - old < math.inf else None

    def _per_second(self, growth: float | None) -> float | None:
        if growth is None:
            return None
        return growth / (self._pages[-1][0] - self._pages[0][0])


def _failed(page: Page) -> Iterable[float]:
    return (count for outcome, count in page.outcomes.items() if outcome not in _GOOD_OUTCOMES)


def _sum(values: Iterable[float]) -> float:
    return math.fsum(values)


def _percentile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """Interpolates within the bucket that a share of the values reaches, as Prometheus does."""
    if not buckets or buckets[-1][0] != math.inf or not 0 < buckets[-1][1] < math.inf:
        return None
    wanted = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return None
