"""The series that a router of several workers has beside those of each."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Metric

from servicekit.metrics import new_registry

_PREFIX = "pagestream_router_worker"
_IN_FLIGHT = "pagestream_router_requests_in_flight"


class WorkerMetrics:
    """Series that tell the workers apart.

    Attributes:
        registry: Holds them, and shows the supervisor's own process.
    """

    def __init__(self, num_workers: int) -> None:
        self.registry = new_registry()
        self._ready = Gauge(
            f"{_PREFIX}_ready",
            "1 while the worker accepts new requests, else 0.",
            ("worker",),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            f"{_PREFIX}_requests_in_flight",
            "Requests in progress in the worker.",
            ("worker",),
            registry=self.registry,
        )
        self._restarts = Counter(
            f"{_PREFIX}_restarts",
            "Times that the worker's process ended unasked, after which another is started.",
            ("worker",),
            registry=self.registry,
        )
        for number in range(num_workers):
            self.update(number, (), is_ready=False)
            self._restarts.labels(str(number))

    def update(self, number: int, families: Iterable[Metric], *, is_ready: bool) -> None:
        """Takes in a worker's state.

        Args:
            number: Which worker it is.
            families: What it has reported.
            is_ready: Whether it accepts new requests.
        """
        self._ready.labels(str(number)).set(is_ready)
        in_flight = (one.samples for one in families if one.name == _IN_FLIGHT)
        self._in_flight.labels(str(number)).set(
            sum(sample.value for samples in in_flight for sample in samples)
        )

    def count_restart(self, number: int) -> None:
        """A worker's process has ended unasked."""
        self._restarts.labels(str(number)).inc()
