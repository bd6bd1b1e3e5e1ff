"""When the certificates of a service expire, as a metric."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from servicekit.tls import TlsSource


class CertificateCollector(Collector):
    """Shows the expiry of certificates; each scrape looks whether their files have changed.

    Args:
        prefix: What the name of the series begins with.

    Attributes:
        sources: The certificates.
    """

    def __init__(self, prefix: str) -> None:
        self.sources: Sequence[TlsSource] = ()
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Yields the series."""
        family = GaugeMetricFamily(
            f"{self._prefix}_tls_certificate_expiration_timestamp_seconds",
            "When the certificates of an option expire, in seconds since 1970.",
            labels=["option"],
        )
        for source in self.sources:
            for option, moment in source.current().expirations.items():
                family.add_metric([option.removeprefix("--").replace("-", "_")], moment)
        yield family
