"""The metrics of all workers as those of one router."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_COUNTS = ("counter", "histogram")
JOINED_OTHERWISE: dict[str, Callable[[float, float], float]] = {
    "pagestream_router_engine_cache_event_age_seconds": max,
    "pagestream_router_engine_index_blocks": max,
    "pagestream_router_engine_serving": max,
    "pagestream_router_index_blocks": max,
    "pagestream_router_tls_certificate_expiration_timestamp_seconds": min,
    "process_max_fds": min,
    "process_start_time_seconds": min,
    "python_info": max,
}
"""Gauges of which a sum says nothing, as all workers show the same thing."""


class JoinedMetrics(Collector):
    """The series of all workers, without a label that tells them apart.

    A counter never goes back: what a worker has reported outlives it.

    Args:
        own: The series of the process that joins them, of which `process_…` are added up, too.

    Attributes:
        latest: What each worker that runs has reported, by its number.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        self.latest: dict[int, Sequence[Metric]] = {}
        self._own = own
        self._retained: Sequence[Metric] = ()
        self._shown: list[Sequence[Metric]] = []

    def update(self, number: int, families: Sequence[Metric]) -> None:
        """Takes in what a worker reports."""
        self.latest[number] = families

    def retire(self, number: int) -> None:
        """Keeps what a worker that has ended had counted, and nothing else of it."""
        ended = self.latest.pop(number, ())
        counts = [family for family in ended if family.type in _COUNTS]
        self._retained = joined([self._retained, counts])

    def snapshot(self) -> None:
        """Takes what `collect` shows, which may run in another thread."""
        self._shown = [self._retained, *self.latest.values()]

    def collect(self) -> Iterator[Metric]:
        """Yields all series."""
        yield from joined([*self._shown, self._own.collect()])


def joined(workers: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Returns the families of all workers as one of each: values of equal labels are added up."""
    families: dict[str, Metric] = {}
    samples: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Sample]] = {}
    for worker in workers:
        for family in worker:
            if family.name not in families:
                families[family.name] = Metric(family.name, family.documentation, family.type)
            known = samples.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                if key in known:
                    value = _joining(family)(known[key].value, sample.value)
                    known[key] = known[key]._replace(value=value)
                else:
                    known[key] = sample
    for name, family in families.items():
        family.samples = list(samples[name].values())
    return list(families.values())


def _joining(family: Metric) -> Callable[[float, float], float]:
    # A sample of it is always 1.
    if family.type == "info":
        return max
    return JOINED_OTHERWISE.get(family.name, _sum)


def _sum(one: float, other: float) -> float:
    return one + other
