"""Every Prometheus series of the router; `docs/metrics.md` says what each is for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.engines.connection_loss import Fault
from router.engines.fleet import FleetStatistics
from router.errors import RequestError
from router.placement.policy import Placement
from router.request.progress import OUTCOMES
from router.text.template_process import END_CAUSES
from router.types.engine_state import EngineSnapshot, EngineState
from servicekit.metrics import REQUEST_BUCKETS, TOKEN_BUCKETS, WORK_BUCKETS, new_registry

_PREFIX = "pagestream_router"

FAILOVER_CAUSES = ("engine_failed", "stalled", "violation", "draining", "other")
"""Why requests leave an engine after tokens of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUsage:
    """What the router holds besides its fleet, and how often its engines could not be found."""

    num_discovery_failures: int = 0
    num_request_bytes: int = 0
    num_queued_prompt_tokens: int = 0
    num_tasks: int = 0


class RouterMetrics:
    """Hears of requests from pipeline and fleet, and keeps the series in a registry of its own."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self._fleet = _FleetCollector()
        self.registry.register(self._fleet)
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Requests that ended, by finish reason, error reason or cancellation. A Generate call "
            "is one request for each of its continuations.",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._in_flight = Gauge(
            f"{_PREFIX}_requests_in_flight", "Requests in progress.", registry=self.registry
        )
        self._request_bytes = Gauge(
            f"{_PREFIX}_request_bytes",
            "Bytes of the messages with a prompt or tokens, of all calls in progress.",
            registry=self.registry,
        )
        self._queued_prompt_tokens = Gauge(
            f"{_PREFIX}_queued_prompt_tokens",
            "Prompt tokens of requests that no engine has started yet.",
            registry=self.registry,
        )
        self._tasks = Gauge(
            f"{_PREFIX}_tasks",
            "Asyncio tasks of the router, including those that wait.",
            registry=self.registry,
        )
        self._malformed_messages = Counter(
            f"{_PREFIX}_malformed_messages",
            "Messages refused because they cannot be parsed or exceed a bound, by method.",
            ("method",),
            registry=self.registry,
        )
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of requests handed to placement."
        )
        self._generated_tokens = self._counter(
            "generated_tokens", "Tokens received from engines for clients."
        )
        self._best_cached = self._counter(
            "best_cached_tokens",
            "Prompt tokens of admitted requests that the index held for the engine with most of "
            "them.",
        )
        self._predicted_cached = self._counter(
            "predicted_cached_tokens",
            "Prompt tokens of admitted requests that the index held for the chosen engine.",
        )
        self._actual_cached = self._counter(
            "actual_cached_tokens",
            "Prompt tokens of admitted requests that the chosen engine found in its cache.",
        )
        self._retries = self._counter(
            "retries", "Requests sent to another engine before their first token."
        )
        self._failovers = Counter(
            f"{_PREFIX}_failovers",
            "Requests sent to another engine after their first token, by cause.",
            ("cause",),
            registry=self.registry,
        )
        for cause in FAILOVER_CAUSES:
            self._failovers.labels(cause)
        self._template_worker_ends = Counter(
            f"{_PREFIX}_template_worker_ends",
            "Chat template workers that were killed or died, by cause.",
            ("cause",),
            registry=self.registry,
        )
        for cause in END_CAUSES:
            self._template_worker_ends.labels(cause)
        self._resumed_tokens = self._counter(
            "resumed_tokens",
            "Tokens that requests already had when they were sent to another engine.",
        )
        self._time_to_first_token = self._histogram(
            "time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            REQUEST_BUCKETS,
        )
        self._time_between_tokens = self._histogram(
            "time_between_tokens_seconds",
            "Seconds between two messages with tokens, divided by the tokens in the later one.",
            TOKEN_BUCKETS,
        )
        self._request_time = self._histogram(
            "request_time_seconds",
            "Seconds from a request's arrival to its end, whatever the outcome.",
            REQUEST_BUCKETS,
        )
        self._time_added = self._histogram(
            "time_added_seconds",
            "Seconds from a request's arrival until it is sent to an engine: checks, tokenization, "
            "placement.",
            WORK_BUCKETS,
        )
        self._tokenization_time = self._histogram(
            "tokenization_time_seconds",
            "Seconds to tokenize one text or chat, including the wait for a thread.",
            WORK_BUCKETS,
        )
        self._placement_time = self._histogram(
            "placement_time_seconds",
            "Seconds to look up the prefix index and choose an engine.",
            WORK_BUCKETS,
        )

    def update(
        self,
        engines: Sequence[EngineSnapshot],
        statistics: FleetStatistics,
        usage: ResourceUsage,
    ) -> None:
        """Takes in what the next scrape shall say of the state of the router."""
        self._request_bytes.set(usage.num_request_bytes)
        self._queued_prompt_tokens.set(usage.num_queued_prompt_tokens)
        self._tasks.set(usage.num_tasks)
        self._fleet.engines = engines
        self._fleet.statistics = statistics
        self._fleet.num_discovery_failures = usage.num_discovery_failures

    def count_malformed_message(self, method: str) -> None:
        """A message of a client, or of an engine (EngineService), was refused unread."""
        self._malformed_messages.labels(method).inc()

    def started(self) -> None:
        """A request came in."""
        self._in_flight.inc()

    def tokenized(self, seconds: float) -> None:
        """A text or a chat became tokens."""
        self._tokenization_time.observe(seconds)

    def handed_over(self, num_prompt_tokens: int) -> None:
        """A request goes to the dispatcher."""
        self._prompt_tokens.inc(num_prompt_tokens)

    def generated(self, num_tokens: int, seconds: float, *, is_first: bool) -> None:
        """Tokens came, this long after those before them, or after the request."""
        self._generated_tokens.inc(num_tokens)
        if is_first:
            self._time_to_first_token.observe(seconds)
        else:
            self._time_between_tokens.observe(seconds / num_tokens)

    def ended(self, outcome: str, seconds: float) -> None:
        """A request is over."""
        self._in_flight.dec()
        self._requests.labels(outcome).inc()
        self._request_time.observe(seconds)

    def request_placed(self, placement: Placement, seconds: float, added: float | None) -> None:
        """An engine was chosen; again for each retry, which adds no time of its own."""
        self._placement_time.observe(seconds)
        if added is not None:
            self._time_added.observe(added)

    def request_admitted(self, placement: Placement, num_cached_tokens: int) -> None:
        """An engine began with a request."""
        self._best_cached.inc(placement.num_best_cached_tokens)
        self._predicted_cached.inc(placement.num_predicted_cached_tokens)
        self._actual_cached.inc(num_cached_tokens)

    def request_retried(self, engine: str, error: RequestError) -> None:
        """A request leaves an engine that refused or lost it."""
        self._retries.inc()

    def request_resumed(self, error: RequestError, num_tokens: int) -> None:
        """A request that had tokens leaves an engine that failed or handed it back."""
        cause = error.status.metadata.get("cause", error.status.reason.lower())
        self._failovers.labels(cause if cause in FAILOVER_CAUSES else "other").inc()
        self._resumed_tokens.inc(num_tokens)

    def template_worker_ended(self, cause: str) -> None:
        """The worker of a chat template was killed, or died."""
        self._template_worker_ends.labels(cause).inc()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self.registry)


class _FleetCollector(Collector):
    """Series read from the fleet at each scrape, so that an engine that goes takes its own along.

    Engine addresses are configuration, hence few enough for a label.
    """

    def __init__(self) -> None:
        self.engines: Sequence[EngineSnapshot] = ()
        self.statistics: FleetStatistics | None = None
        self.num_discovery_failures = 0

    def collect(self) -> Iterator[Metric]:
        yield from self._per_engine()
        if self.statistics is not None:
            yield from _index(self.statistics)
        yield CounterMetricFamily(
            f"{_PREFIX}_discovery_failures",
            "Times that --engines-file could not be used or --engine-dns not resolved.",
            value=self.num_discovery_failures,
        )

    def _per_engine(self) -> Iterator[Metric]:
        engines = self.engines
        yield _family(
            "engine_serving",
            "1 while the router sends requests to the engine, else 0.",
            ((e.address, float(e.state is EngineState.SERVING)) for e in engines),
        )
        yield _family(
            "engine_requests_in_flight",
            "Requests of this router in progress on the engine.",
            ((e.address, float(e.num_in_flight)) for e in engines),
        )
        yield _family(
            "engine_cache_event_age_seconds",
            "Seconds since the engine last reported on its cache.",
            ((e.address, e.cache_event_age) for e in engines if e.cache_event_age is not None),
        )
        yield _family(
            "engine_index_blocks",
            "Blocks of the engine in the prefix index.",
            ((e.address, float(e.num_indexed_blocks)) for e in engines),
        )


def _family(name: str, text: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=("engine",))
    for address, value in values:
        family.add_metric((address,), value)
    return family


def _index(statistics: FleetStatistics) -> Iterator[Metric]:
    index = statistics.index
    yield GaugeMetricFamily(
        f"{_PREFIX}_index_blocks", "Distinct blocks in the prefix index.", value=index.num_blocks
    )
    yield GaugeMetricFamily(
        f"{_PREFIX}_index_bytes",
        "Estimated memory of the prefix index, in bytes.",
        value=index.num_bytes,
    )
    yield GaugeMetricFamily(
        f"{_PREFIX}_index_speculative_entries",
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
        yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
    faults = CounterMetricFamily(
        f"{_PREFIX}_engine_faults",
        "Faults of engines, and faults of the router that an engine's data triggered, by kind.",
        labels=("kind",),
    )
    for kind in Fault:
        faults.add_metric((kind.value,), statistics.num_faults.get(kind, 0))
    yield faults
