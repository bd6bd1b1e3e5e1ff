"""The engine's series under vLLM's names: what dashboards and llm-d's scorers read."""

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine_service.core.types import StepStats
from engine_service.server.metrics import EngineMetrics
from engine_service.server.vllm_metrics import FINISHED_REASONS, VLLM_NAMES
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import generate_request, running_engine

DOCUMENT = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")
LABELS = {"model_name": "small", "engine": "0"}


@pytest.fixture
def metrics():
    metrics = EngineMetrics("small", has_vllm_names=True)
    metrics.set_info(make_info(num_blocks=32, block_size=4))
    return metrics


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"vllm:{name}", {**LABELS, **labels})


def test_state_counters_and_times_are_those_of_our_own_series(metrics):
    stats = StepStats(
        num_running=3,
        num_waiting=2,
        num_free_blocks=24,
        num_used_blocks=8,
        num_prefix_query_tokens=100,
        num_prefix_hit_tokens=40,
        num_generated_tokens=3,
        num_preemptions=1,
    )
    metrics.count_step(stats)
    metrics.time_between_tokens.observe(0.02)
    metrics.count_refusal("queue_full")
    for outcome in ("stop", "length", "cancelled", "deadline_exceeded", "internal"):
        metrics.count_refusal(outcome)

    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "num_requests_waiting") == 2
    assert value(metrics, "kv_cache_usage_perc") == 0.25
    assert value(metrics, "prefix_cache_queries_total") == 100
    assert value(metrics, "prefix_cache_hits_total") == 40
    assert value(metrics, "generation_tokens_total") == 3
    assert value(metrics, "num_preemptions_total") == 1
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.02") == 1
    assert value(metrics, "inter_token_latency_seconds_sum") == 0.02
    reasons = {"stop": 1, "length": 1, "abort": 2, "error": 1}
    for reason, count in reasons.items():
        assert value(metrics, "request_success_total", finished_reason=reason) == count
    assert value(metrics, "cache_config_info", block_size="4", num_gpu_blocks="32") == 1


def test_page_with_both_names_is_a_valid_exposition(metrics):
    text = generate_latest(metrics.registry).decode()

    families = {family.name: family for family in text_string_to_metric_families(text)}
    theirs = {name for name in families if name.startswith("vllm:")}
    names = {f"vllm:{name}" for name in VLLM_NAMES.values()}
    assert theirs == names | {"vllm:request_success", "vllm:cache_config_info"}
    assert all(families[name].samples for name in theirs)
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))


def test_size_of_the_cache_is_unknown_until_the_model_is_loaded():
    text = generate_latest(EngineMetrics("small", has_vllm_names=True).registry).decode()

    assert "vllm:num_requests_running{" in text
    assert "vllm:cache_config_info{" not in text


def test_document_lists_what_stands_for_what(metrics):
    rows = dict(
        re.findall(r"^\| `vllm:(\w+)` \| `pagestream_engine_(\w+)`", DOCUMENT, re.MULTILINE)
    )
    families = {family.name: family for family in metrics.registry.collect()}
    listed = {}
    for theirs, ours in rows.items():
        for name, prefix in ((theirs, "vllm:"), (ours, "pagestream_engine_")):
            family = families[prefix + name.removesuffix("_total")]
            assert name.endswith("_total") == (family.type == "counter"), name
        listed[ours.removesuffix("_total")] = theirs.removesuffix("_total")
    whole = {
        "requests": "request_success",
        "kv_cache_block_size_tokens": "cache_config_info",
    }
    assert listed == {**VLLM_NAMES, **whole}
    [note] = re.findall(
        r"^\| `vllm:request_success_total` \| \S+ \| (.+) \|$", DOCUMENT, re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", note)) - {"finished_reason"} == (
        FINISHED_REASONS.keys() | set(FINISHED_REASONS.values())
    )


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_names_are_shown_if_the_option_asks_for_them(is_wanted):
    async with running_engine(vllm_metrics=is_wanted) as engine:
        call = engine.stub.Generate(generate_request(1, 2, 3, max_tokens=2))
        request = await engine.core.next_request()
        engine.core.step(
            {request.request_id: [7]},
            stats=StepStats(num_running=1, num_generated_tokens=1),
        )
        await call.read()
        _, text = await engine.http("/metrics")

    line = 'vllm:generation_tokens_total{engine="0",model_name="fake"} 1.0'
    assert (line in text.splitlines()) == is_wanted
