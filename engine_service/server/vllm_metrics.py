"""The engine's series under the names and labels of vLLM, for dashboards and gateways that know it.

Nothing is counted twice: each scrape copies what our own series hold. `docs/metrics.md` says what
differs.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from servicekit.metrics import MODEL_NAME

VLLM_NAMES = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc",
    "prefix_cache_query_tokens": "prefix_cache_queries",
    "prefix_cache_hit_tokens": "prefix_cache_hits",
    "preemptions": "num_preemptions",
    "prompt_tokens": "prompt_tokens",
    "generated_tokens": "generation_tokens",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "time_between_tokens_seconds": "inter_token_latency_seconds",
    "request_time_seconds": "e2e_request_latency_seconds",
    "queue_time_seconds": "request_queue_time_seconds",
    "prefill_time_seconds": "request_prefill_time_seconds",
    "decode_time_seconds": "request_decode_time_seconds",
    "prompt_length_tokens": "request_prompt_tokens",
    "output_length_tokens": "request_generation_tokens",
    "max_tokens": "request_params_max_tokens",
}
"""Our series of which vLLM has one that means the same, without prefixes and `_total`."""
FINISHED_REASONS = {
    "stop": "stop",
    "length": "length",
    "cancelled": "abort",
    "deadline_exceeded": "abort",
    "engine_failed": "error",
    "internal": "error",
}
"""vLLM's word for each outcome of a request that ran; it does not count requests it refuses."""

_PREFIX = "vllm:"
_OUTCOMES = "requests"
_BLOCK_SIZE = "kv_cache_block_size_tokens"
_NUM_BLOCKS = "kv_cache_blocks"


class VllmMetrics(Collector):
    """Shows the series of a registry under vLLM's names.

    Args:
        registry: Our series, without the label of the model.
        prefix: What their names begin with.
        model_name: The label `model_name`; the label `engine` is always 0, as with one engine.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, model_name: str) -> None:
        self._registry = registry
        self._prefix = f"{prefix}_"
        self._labels = {MODEL_NAME: model_name, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        """Yields the series."""
        ours = {
            family.name.removeprefix(self._prefix): family for family in self._registry.collect()
        }
        for name, theirs in VLLM_NAMES.items():
            yield self._renamed(ours[name], _PREFIX + theirs)
        yield self._success(ours[_OUTCOMES])
        yield self._cache_config(ours[_BLOCK_SIZE], ours[_NUM_BLOCKS])

    def _renamed(self, family: Metric, name: str) -> Metric:
        renamed = Metric(name, family.documentation, family.type)
        renamed.samples = [
            sample._replace(
                name=name + sample.name.removeprefix(family.name),
                labels={**sample.labels, **self._labels},
            )
            for sample in family.samples
        ]
        return renamed

    def _success(self, outcomes: Metric) -> CounterMetricFamily:
        counts = dict.fromkeys(FINISHED_REASONS.values(), 0.0)
        for sample in outcomes.samples:
            reason = FINISHED_REASONS.get(sample.labels["outcome"])
            if reason is not None:
                counts[reason] += sample.value
        family = CounterMetricFamily(
            f"{_PREFIX}request_success",
            "Requests that ended after they had been accepted, by reason.",
            labels=(*self._labels, "finished_reason"),
        )
        for reason, count in counts.items():
            family.add_metric((*self._labels.values(), reason), count)
        return family

    def _cache_config(self, block_size: Metric, num_blocks: Metric) -> GaugeMetricFamily:
        [size], [number] = block_size.samples, num_blocks.samples
        family = GaugeMetricFamily(
            f"{_PREFIX}cache_config_info",
            "Always 1; the labels describe the KV cache.",
            labels=(*self._labels, "block_size", "num_gpu_blocks"),
        )
        # Before the model is loaded, nobody knows.
        if size.value:
            labels = (*self._labels.values(), f"{size.value:.0f}", f"{number.value:.0f}")
            family.add_metric(labels, 1)
        return family
