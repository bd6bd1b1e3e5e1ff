"""Every Prometheus series of the router; `docs/metrics.md` says what each is for."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from router.engines.fleet import FleetStatistics
from router.server.fleet_metrics import NO_MODEL, FleetCollector
from router.server.key_metrics import KeyCollector
from router.server.model_metrics import ModelMetrics, RequestFamilies, RequestMetrics
from router.text.template_process import END_CAUSES
from router.types.engine_state import EngineSnapshot
from servicekit.certificate_metrics import CertificateCollector
from servicekit.metrics import new_registry

_PREFIX = "pagestream_router"
_MAX_MODELS = 256
"""Models with series of their own in the life of a router: engines choose their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUsage:
    """What the router holds besides its fleet, and how often its engines could not be found."""

    num_discovery_failures: int = 0
    num_request_bytes: int = 0
    num_tasks: int = 0


class RouterMetrics:
    """Hears of requests from pipeline and dispatcher, and keeps the series in a registry.

    Attributes:
        registry: Has all series.
        keys: Makes those about API keys, of the keyring that it is given.
        certificates: Makes that about certificates, of the sources that it is given.
    """

    def __init__(self) -> None:
        self.registry = new_registry()
        self._fleet = FleetCollector(_PREFIX)
        self.registry.register(self._fleet)
        self.keys = KeyCollector(_PREFIX)
        self.registry.register(self.keys)
        self.certificates = CertificateCollector(_PREFIX)
        self.registry.register(self.certificates)
        self._families = RequestFamilies(_PREFIX, self.registry)
        self._models: dict[str, ModelMetrics] = {}
        self._unserved = RequestMetrics(self._families, NO_MODEL)
        self._request_bytes = Gauge(
            f"{_PREFIX}_request_bytes",
            "Bytes of the messages with a prompt or tokens, of all calls in progress.",
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
        self._template_worker_ends = Counter(
            f"{_PREFIX}_template_worker_ends",
            "Chat template workers that were killed or died, by cause.",
            ("cause",),
            registry=self.registry,
        )
        for cause in END_CAUSES:
            self._template_worker_ends.labels(cause)

    def of_model(self, name: str) -> ModelMetrics:
        """Returns the series of a model that an engine serves."""
        found = self._models.get(name)
        if found is None:
            shown = name if len(self._models) < _MAX_MODELS else NO_MODEL
            found = self._models.get(shown) or ModelMetrics(self._families, shown)
            self._models[shown] = found
        return found

    def of_request(self, name: str) -> RequestMetrics:
        """Returns the series of requests that name what no engine serves now, or nothing."""
        return self._models.get(name, self._unserved)

    def update(
        self,
        engines: Sequence[EngineSnapshot],
        statistics: FleetStatistics,
        usage: ResourceUsage,
    ) -> None:
        """Takes in what the next scrape shall say of the state of the router."""
        self._request_bytes.set(usage.num_request_bytes)
        self._tasks.set(usage.num_tasks)
        self._fleet.engines = engines
        self._fleet.statistics = statistics
        self._fleet.num_discovery_failures = usage.num_discovery_failures
        # So that a model's series are there before its first request.
        for engine in engines:
            if engine.model is not None:
                self.of_model(engine.model.name)

    def count_malformed_message(self, method: str) -> None:
        """A message of a client, or of an engine (EngineService), was refused unread."""
        self._malformed_messages.labels(method).inc()

    def template_worker_ended(self, cause: str) -> None:
        """The worker of a chat template was killed, or died."""
        self._template_worker_ends.labels(cause).inc()
