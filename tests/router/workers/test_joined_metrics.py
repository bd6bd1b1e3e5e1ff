import pickle
import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from router.server.metrics import ResourceUsage, RouterMetrics
from router.workers.joined_metrics import JOINED_OTHERWISE, JoinedMetrics, joined
from servicekit.metrics import new_registry
from tests.fakes.fake_fleet import FakeFleet
from tests.router.server.test_metrics import STATISTICS


def worker(number):
    """Returns the families of a worker, as they come through its connection."""
    registry = new_registry()
    outcomes = Counter("pagestream_router_requests", "Text.", ("outcome",), registry=registry)
    outcomes.labels("stop").inc(number)
    if number == 2:
        outcomes.labels("queue_full").inc(7)
    times = Histogram("pagestream_router_time_seconds", "Text.", registry=registry, buckets=(1, 2))
    times.observe(number)
    Gauge("pagestream_router_tasks", "Text.", registry=registry).set(10 * number)
    Gauge("pagestream_router_index_blocks", "Text.", registry=registry).set(10 * number)
    serving = Gauge("pagestream_router_engine_serving", "Text.", ("engine",), registry=registry)
    serving.labels("a:1").set(number == 1)
    Info("pagestream_router_build", "Text.", registry=registry).info({"version": "1"})
    return pickle.loads(pickle.dumps(list(registry.collect())))


def value(families, name, **labels):
    [found] = [
        sample.value
        for family in families
        for sample in family.samples
        if (sample.name, sample.labels) == (name, labels)
    ]
    return found


def test_counters_histograms_and_most_gauges_are_added_up():
    families = joined([worker(1), worker(2)])

    assert value(families, "pagestream_router_requests_total", outcome="stop") == 3
    assert value(families, "pagestream_router_requests_total", outcome="queue_full") == 7
    assert value(families, "pagestream_router_time_seconds_bucket", le="1.0") == 1
    assert value(families, "pagestream_router_time_seconds_bucket", le="+Inf") == 2
    assert value(families, "pagestream_router_time_seconds_count") == 2
    assert value(families, "pagestream_router_time_seconds_sum") == 3
    assert value(families, "pagestream_router_tasks") == 30


def test_what_all_workers_show_alike_is_not_multiplied():
    families = joined([worker(1), worker(2)])

    assert value(families, "pagestream_router_index_blocks") == 20
    assert value(families, "pagestream_router_engine_serving", engine="a:1") == 1
    [python] = [family for family in families if family.name == "python_info"]
    assert [sample.value for sample in python.samples] == [1]
    [build] = [family for family in families if family.name == "pagestream_router_build"]
    assert [sample.value for sample in build.samples] == [1]
    began = [value(one, "process_start_time_seconds") for one in ([*worker(1)], families)]
    assert began[0] == began[1]


def test_joined_series_are_a_valid_exposition_with_one_of_each():
    joining = JoinedMetrics(new_registry())
    for number in (1, 2):
        joining.update(number, worker(number))
    joining.snapshot()
    registry = CollectorRegistry()
    registry.register(joining)

    text = generate_latest(registry).decode()

    names = re.findall(r"^([^# ]\S*) ", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 16
    assert text.count("# TYPE pagestream_router_requests_total counter\n") == 1


def test_counters_outlive_their_worker_and_gauges_do_not():
    joining = JoinedMetrics(CollectorRegistry())

    def shown(name, **labels):
        joining.snapshot()
        return value(joining.collect(), name, **labels)

    joining.update(0, worker(1))
    joining.update(1, worker(2))
    joining.retire(1)
    assert shown("pagestream_router_requests_total", outcome="stop") == 3
    assert shown("pagestream_router_time_seconds_count") == 2
    assert shown("pagestream_router_tasks") == 10

    joining.update(1, worker(1))
    joining.retire(1)
    joining.retire(1)
    assert shown("pagestream_router_requests_total", outcome="stop") == 4
    assert shown("pagestream_router_requests_total", outcome="queue_full") == 7
    assert shown("pagestream_router_tasks") == 10


def test_every_gauge_that_is_not_added_up_is_one_that_exists():
    metrics = RouterMetrics()
    metrics.update(FakeFleet().engines(), STATISTICS, ResourceUsage())

    gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge"}
    assert JOINED_OTHERWISE.keys() <= gauges
