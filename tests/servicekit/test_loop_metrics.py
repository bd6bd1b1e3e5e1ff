import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from servicekit.loop_metrics import CounterFamily, GaugeFamily, HistogramFamily
from servicekit.metrics import LENGTH_BUCKETS, WORK_BUCKETS, new_registry

new_registry()  # turns off the series that say when others were created


def values_of(buckets):
    rng = random.Random(0)
    between = [rng.uniform(0, 2 * max(buckets)) for _ in range(50)]
    return [0, *buckets, *between, 1e12]


@pytest.mark.parametrize("buckets", [WORK_BUCKETS, LENGTH_BUCKETS, (0.1, 2.0)])
def test_a_scrape_shows_the_same_as_of_the_library(buckets):
    library, ours = CollectorRegistry(), CollectorRegistry()
    labels = ("model_name", "kind")
    families = [
        (
            Counter("things", 'All "things".', labels, registry=library),
            Gauge("level", "Now.", labels, registry=library),
            Histogram("time_seconds", "Of each.", labels, registry=library, buckets=buckets),
        ),
        (
            CounterFamily("things", 'All "things".', labels, ours),
            GaugeFamily("level", "Now.", labels, ours),
            HistogramFamily("time_seconds", "Of each.", labels, ours, buckets=buckets),
        ),
    ]
    for counter, gauge, histogram in families:
        for kind in ("a", 'b"\n'):
            counter.labels("m", kind).inc()
            counter.labels("m", kind).inc(4)
            gauge.labels("m", kind).inc(7)
            gauge.labels("m", kind).inc(-2)
            for value in values_of(buckets):
                histogram.labels("m", kind).observe(value)
        # Shown before the first value.
        for family in (counter, gauge, histogram):
            family.labels("m", "none")

    assert generate_latest(ours) == generate_latest(library)
    assert openmetrics.generate_latest(ours) == openmetrics.generate_latest(library)


def test_a_name_is_registered_once():
    registry = CollectorRegistry()
    CounterFamily("things", "All.", ("model_name",), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        GaugeFamily("things", "All.", ("model_name",), registry)
