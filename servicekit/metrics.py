"""Metrics code that our services share: the registry, its labels and the histogram buckets."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

MODEL_NAME = "model_name"
"""The label of all series that are about a model."""

REQUEST_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
"""Seconds of a request or of one of its waits."""
TOKEN_BUCKETS = (
    *(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    *(0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Seconds between two tokens of a request."""
WORK_BUCKETS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
"""Seconds that a service spends on something, such as a step or a placement."""
LENGTH_BUCKETS = tuple(float(1 << exponent) for exponent in range(21))
"""Tokens of a prompt or an output."""


class Labelled(Collector):
    """Shows all series of a registry with one more label, which is the same for all.

    It is added at each scrape, so that what counts does not pay for it.
    """

    def __init__(self, registry: CollectorRegistry, label: str, value: str) -> None:
        self._registry = registry
        self._label = {label: value}

    def collect(self) -> Iterator[Metric]:
        """Yields the series with the label."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, **self._label})
                for sample in family.samples
            ]
            yield family


def new_registry() -> CollectorRegistry:
    """Returns a registry that shows the process and its Python, and nothing else yet."""
    # A gauge beside each counter and histogram, for which nobody asks.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
