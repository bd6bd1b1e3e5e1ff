"""The series about API keys."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from router.access.keyring import Keyring


class KeyCollector(Collector):
    """Makes the series from the state of the keyring.

    Attributes:
        keyring: The keys, or None if clients need none.
    """

    def __init__(self, prefix: str) -> None:
        self.keyring: Keyring | None = None
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Yields the series as of now."""
        keyring = self.keyring
        yield CounterMetricFamily(
            f"{self._prefix}_api_keys_file_failures",
            "Times that --api-keys-file could not be used while the router ran.",
            value=0 if keyring is None else keyring.num_failures,
        )
