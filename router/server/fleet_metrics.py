"""The series of a router's engines and of its index, read from the fleet at each scrape."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.engines.connection_loss import Fault
from router.engines.fleet import FleetStatistics
from router.types.engine_state import EngineSnapshot, EngineState
from servicekit.metrics import MODEL_NAME

NO_MODEL = "no model"
"""The `model_name` where there is none; no model has this name, since it has a space."""


class FleetCollector(Collector):
    """Reads them when they are asked for, so that an engine that goes takes its own along.

    Engine addresses are configuration, hence few enough for a label.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.engines: Sequence[EngineSnapshot] = ()
        self.statistics: FleetStatistics | None = None
        self.num_discovery_failures = 0

    def collect(self) -> Iterator[Metric]:
        """Yields the series as of the last update."""
        yield from self._per_engine()
        if self.statistics is not None:
            yield from _index(self._prefix, self.statistics)
        yield CounterMetricFamily(
            f"{self._prefix}_discovery_failures",
            "Times that --engines-file could not be used or --engine-dns not resolved.",
            value=self.num_discovery_failures,
        )

    def _per_engine(self) -> Iterator[Metric]:
        engines = self.engines
        yield self._family(
            "engine_serving",
            "1 while the router sends requests to the engine, else 0.",
            ((e, float(e.state is EngineState.SERVING)) for e in engines),
        )
        yield self._family(
            "engine_requests_in_flight",
            "Requests of this router in progress on the engine.",
            ((e, float(e.num_in_flight)) for e in engines),
        )
        yield self._family(
            "engine_cache_event_age_seconds",
            "Seconds since the engine last reported on its cache.",
            ((e, e.cache_event_age) for e in engines if e.cache_event_age is not None),
        )
        yield self._family(
            "engine_index_blocks",
            "Blocks of the engine in the prefix index.",
            ((e, float(e.num_indexed_blocks)) for e in engines),
        )

    def _family(
        self, name: str, text: str, values: Iterable[tuple[EngineSnapshot, float]]
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=("engine", MODEL_NAME))
        for engine, value in values:
            model = engine.model.name if engine.model is not None else NO_MODEL
            family.add_metric((engine.address, model), value)
        return family


def _index(prefix: str, statistics: FleetStatistics) -> Iterator[Metric]:
    index = statistics.index
    yield GaugeMetricFamily(
        f"{prefix}_index_blocks", "Distinct blocks in the prefix index.", value=index.num_blocks
    )
    yield GaugeMetricFamily(
        f"{prefix}_index_bytes",
        "Estimated memory of the prefix index, in bytes.",
        value=index.num_bytes,
    )
    yield GaugeMetricFamily(
        f"{prefix}_index_speculative_entries",
        "Blocks that requests in progress will add to an engine not yet known to hold them.",
        value=index.num_speculative_entries,
    )
    for name, text, value in (
        ("index_snapshots", "Snapshots of engines' caches that were indexed.", index.num_snapshots),
        ("index_gaps", "Gaps found in engines' reports of cache changes.", index.num_gaps),
        (
            "index_rejected_entries",
            "Blocks not indexed because an engine reported more than it has.",
            index.num_rejected_entries,
        ),
        ("engine_connections", "Connections made to engines.", statistics.num_connections),
    ):
        yield CounterMetricFamily(f"{prefix}_{name}", text, value=value)
    faults = CounterMetricFamily(
        f"{prefix}_engine_faults",
        "Faults of engines, and faults of the router that an engine's data triggered, by kind.",
        labels=("kind",),
    )
    for kind in Fault:
        faults.add_metric((kind.value,), statistics.num_faults.get(kind, 0))
    yield faults
