"""Metrics that one thread counts, such as that of an event loop; any thread may collect them.

They look the same in a scrape as prometheus_client's own, whose locks and checks take six times as
long, which matters where a token is counted. Units are those of the names.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_Series = TypeVar("_Series")


class Count:
    """The value of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Adds to it; only a gauge may go down."""
        self.value += amount


class Distribution:
    """The values of a histogram, as the number in each bucket."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Has no value yet.

        Args:
            bounds: The largest value of each bucket, ascending; one more bucket has no bound.
        """
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Family(Collector, Generic[_Series]):
    """All series of one name, which differ in the values of their labels."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        """Has no series yet.

        Args:
            name: Without the suffix `_total` of a counter.
            text: What a scrape says of it.
            labels: The names of the labels.
            registry: What shows it.
        """
        self._name = name
        self._text = text
        self._label_names = labels
        self._series: dict[tuple[str, ...], _Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> _Series:
        """Returns the series of these values, which is shown from now on."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._make()
        return series

    def describe(self) -> Iterator[Metric]:
        """Yields what the registry takes the names from, which nobody else may use."""
        return self.collect()

    @abstractmethod
    def collect(self) -> Iterator[Metric]:
        """Yields the series as of now."""

    @abstractmethod
    def _make(self) -> _Series:
        """Returns a new series."""

    def _current(self) -> "list[tuple[tuple[str, ...], _Series]]":
        # A copy, as the other thread may add to it meanwhile.
        return list(self._series.items())


class _NumberFamily(Family[Count]):
    """Series of one number each."""

    _kind: type[CounterMetricFamily | GaugeMetricFamily]

    def collect(self) -> Iterator[Metric]:
        """Yields the series as of now."""
        family = self._kind(self._name, self._text, labels=self._label_names)
        for values, count in self._current():
            family.add_metric(values, count.value)
        yield family

    def _make(self) -> Count:
        return Count()


class CounterFamily(_NumberFamily):
    """Counters."""

    _kind = CounterMetricFamily


class GaugeFamily(_NumberFamily):
    """Gauges."""

    _kind = GaugeMetricFamily


class HistogramFamily(Family[Distribution]):
    """Histograms of the same buckets."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        *,
        buckets: Sequence[float],
    ) -> None:
        """Has no series yet.

        Args:
            name: The name.
            text: What a scrape says of it.
            labels: The names of the labels.
            registry: What shows it.
            buckets: The largest value of each bucket, ascending; one more has no bound.
        """
        self._buckets = buckets
        bounds = (*buckets, float("inf"))
        self._bound_names = [floatToGoString(one) for one in bounds]  # type: ignore[no-untyped-call]
        super().__init__(name, text, labels, registry)

    def collect(self) -> Iterator[Metric]:
        """Yields the series as of now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._label_names)
        for values, distribution in self._current():
            total, counts = distribution.total, accumulate(list(distribution.counts))
            family.add_metric(values, list(zip(self._bound_names, counts, strict=True)), total)
        yield family

    def _make(self) -> Distribution:
        return Distribution(self._buckets)
