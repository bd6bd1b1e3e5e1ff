"""The series of an engine's ranks; an engine of a single rank has none."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from engine_service.core.types import RankStats


class RankMetrics:
    """One series of each kind for each rank that has reported."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"{prefix}_{name}", text, ("rank",), registry=registry)

        self._steps = counter("rank_steps", "Steps that the rank has begun.")
        self._lag = counter(
            "rank_step_lag_seconds",
            "Seconds from the dispatch of a step until the rank began it, summed over steps.",
        )
        self._collectives = counter(
            "rank_collective_seconds",
            "Seconds that the rank spent in collectives, with the wait for other ranks.",
        )
        self._memory = Gauge(
            f"{prefix}_rank_memory_bytes",
            "Bytes in use on the rank's GPU; on a CPU, resident memory of its process.",
            ("rank",),
            registry=registry,
        )
        self._totals: dict[tuple[Counter, int], float] = {}

    def update(self, reports: Iterable[RankStats]) -> None:
        """Takes in what ranks have reported."""
        for stats in reports:
            self._grow(self._steps, stats.rank, stats.num_steps)
            self._grow(self._lag, stats.rank, stats.lag_seconds)
            if stats.collective_seconds is not None:
                self._grow(self._collectives, stats.rank, stats.collective_seconds)
            self._memory.labels(stats.rank).set(stats.memory_bytes)

    def _grow(self, counter: Counter, rank: int, total: float) -> None:
        """Counts up to a total; ignores one that is smaller than before."""
        before = self._totals.get((counter, rank), 0.0)
        if total >= before:
            counter.labels(rank).inc(total - before)
            self._totals[counter, rank] = total
