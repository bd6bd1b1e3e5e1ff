import pytest

from router.engines.connection_loss import Fault
from router.engines.fleet import FleetStatistics
from router.errors import QueueFull
from router.placement.policy import Placement
from router.placement.prefix_index import IndexStatistics
from router.request.progress import OUTCOMES
from router.server.fleet_metrics import NO_MODEL
from router.server.metrics import ResourceUsage, RouterMetrics
from router.text.template_process import END_CAUSES
from tests.fakes.fake_fleet import ENGINE, FakeFleet

INDEX = IndexStatistics(
    num_blocks=10,
    num_entries=11,
    num_speculative_entries=1,
    num_gaps=2,
    num_snapshots=3,
    num_rejected_entries=4,
)
STATISTICS = FleetStatistics(
    index=INDEX, num_connections=5, num_faults={Fault.VIOLATION: 2, Fault.STALLED: 1}
)
PLACEMENT = Placement(engine=ENGINE, num_predicted_cached_tokens=32, num_best_cached_tokens=48)
[MODEL] = (snapshot.info.name for snapshot in FakeFleet().models())


@pytest.fixture
def metrics():
    return RouterMetrics()


@pytest.fixture
def small(metrics):
    return metrics.of_model(MODEL)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"pagestream_router_{name}", labels)


def model_value(metrics, name, **labels):
    return value(metrics, name, model_name=MODEL, **labels)


def test_every_outcome_of_a_served_model_is_there_before_it_happens(metrics):
    metrics.update(FakeFleet().engines(), STATISTICS, ResourceUsage())
    values = [model_value(metrics, "requests_total", outcome=outcome) for outcome in OUTCOMES]

    assert values == [0.0] * len(OUTCOMES)


def test_request_in_flight_ends_in_one_outcome(metrics, small):
    small.started()
    small.started()
    small.ended("queue_full", 0.5, 0)

    assert model_value(metrics, "requests_in_flight") == 1
    assert model_value(metrics, "requests_total", outcome="queue_full") == 1
    assert model_value(metrics, "request_time_seconds_sum") == 0.5


def test_first_token_and_those_after_it_are_timed_apart(metrics, small):
    small.generated(1, 0.25, is_first=True)
    small.generated(4, 1.0, is_first=False)

    assert model_value(metrics, "generated_tokens_total") == 5
    assert model_value(metrics, "time_to_first_token_seconds_sum") == 0.25
    assert model_value(metrics, "time_between_tokens_seconds_sum") == 0.25


def test_time_added_is_that_of_first_placements(metrics, small):
    small.request_placed(PLACEMENT, 0.25, 1.25)
    small.request_placed(PLACEMENT, 0.5, None)

    assert model_value(metrics, "time_added_seconds_count") == 1
    assert model_value(metrics, "time_added_seconds_sum") == 1.25
    assert model_value(metrics, "placement_time_seconds_count") == 2


def test_lengths_are_those_that_were_asked_for_and_generated(metrics, small):
    small.queued(200)
    small.handed_over(100, 64)
    small.handed_over(100, None)
    small.queued(-100)
    small.ended("length", 0.5, 64)
    small.ended("queue_full", 0.5, 0)

    assert model_value(metrics, "queued_prompt_tokens") == 100
    assert model_value(metrics, "prompt_tokens_total") == 200
    assert model_value(metrics, "prompt_length_tokens_bucket", le="64.0") == 0
    assert model_value(metrics, "prompt_length_tokens_bucket", le="256.0") == 2
    assert model_value(metrics, "max_tokens_bucket", le="64.0") == 1
    assert model_value(metrics, "max_tokens_count") == 1
    assert model_value(metrics, "output_length_tokens_sum") == 64
    assert model_value(metrics, "output_length_tokens_count") == 1


def test_cached_tokens_are_counted_as_possible_predicted_and_found(metrics, small):
    small.request_admitted(PLACEMENT, 16)
    small.request_retried(ENGINE, QueueFull("full"))
    small.tokenized(0.5)

    assert model_value(metrics, "best_cached_tokens_total") == 48
    assert model_value(metrics, "predicted_cached_tokens_total") == 32
    assert model_value(metrics, "actual_cached_tokens_total") == 16
    assert model_value(metrics, "retries_total") == 1
    assert model_value(metrics, "tokenization_time_seconds_sum") == 0.5


def test_models_that_no_engine_serves_share_one_name(metrics, small):
    for name in ("made up", "", "another"):
        metrics.of_request(name).started()
        metrics.of_request(name).ended("unknown_model", 0.1, 0)
    # It was served before, and its engine may come back.
    metrics.of_request(MODEL).ended("no_engine", 0.1, 0)

    count = value(metrics, "requests_total", model_name=NO_MODEL, outcome="unknown_model")
    assert count == 3
    assert model_value(metrics, "requests_total", outcome="no_engine") == 1
    assert names_of(metrics) == {NO_MODEL, MODEL}


def test_engines_that_rename_their_models_make_no_end_of_series(metrics):
    for number in range(1000):
        metrics.of_model(f"model-{number}").generated(1, 0.1, is_first=True)

    assert len(names_of(metrics)) == 257
    assert value(metrics, "generated_tokens_total", model_name="model-255") == 1
    assert value(metrics, "generated_tokens_total", model_name=NO_MODEL) == 1000 - 256


def names_of(metrics):
    return {
        sample.labels["model_name"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "model_name" in sample.labels
    }


def test_nothing_says_when_a_counter_began(metrics, small):
    names = [sample.name for one in metrics.registry.collect() for sample in one.samples]
    assert not [name for name in names if name.endswith("_created")]


def test_engine_that_is_gone_takes_its_series_along(metrics):
    engines = FakeFleet().engines()

    metrics.update(engines, STATISTICS, ResourceUsage())
    assert model_value(metrics, "engine_serving", engine=ENGINE) == 1
    assert model_value(metrics, "engine_requests_in_flight", engine=ENGINE) == 0
    assert model_value(metrics, "engine_index_blocks", engine=ENGINE) == 5

    metrics.update([], STATISTICS, ResourceUsage())
    assert model_value(metrics, "engine_serving", engine=ENGINE) is None


def test_what_requests_hold_is_shown_as_of_the_scrape(metrics):
    metrics.update([], STATISTICS, ResourceUsage(num_request_bytes=4096))

    assert value(metrics, "request_bytes") == 4096


def test_tasks_are_those_of_the_last_update(metrics):
    metrics.update([], STATISTICS, ResourceUsage(num_tasks=12))
    metrics.update([], STATISTICS, ResourceUsage(num_tasks=7))

    assert value(metrics, "tasks") == 7


def test_index_is_shown(metrics):
    metrics.update([], STATISTICS, ResourceUsage())

    assert value(metrics, "index_blocks") == 10
    assert value(metrics, "index_speculative_entries") == STATISTICS.index.num_speculative_entries
    assert value(metrics, "index_gaps_total") == 2
    assert value(metrics, "index_snapshots_total") == 3
    assert value(metrics, "index_rejected_entries_total") == 4
    assert value(metrics, "engine_connections_total") == 5
    assert value(metrics, "engine_faults_total", kind="violation") == 2
    assert value(metrics, "engine_faults_total", kind="unexpected") == 0


def test_ends_of_template_workers_are_counted_by_cause(metrics):
    metrics.template_worker_ended("time")

    values = [value(metrics, "template_worker_ends_total", cause=cause) for cause in END_CAUSES]
    assert values == [1.0, 0.0, 0.0]
