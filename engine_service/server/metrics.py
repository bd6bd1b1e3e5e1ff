"""Every Prometheus series of the engine. `docs/metrics.md` says what each means for an operator."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engine_service.core.types import Admission, EngineInfo, FinishReason, StepStats
from engine_service.grammar.checker import KNOWN
from engine_service.grammar.checker import OUTCOMES as GRAMMAR_OUTCOMES
from engine_service.server.core_client import CANCELLED
from engine_service.server.output_stream import OpenRequest
from engine_service.server.rank_metrics import RankMetrics
from engine_service.server.vllm_metrics import VllmMetrics
from protos.wire.reason import Reason
from servicekit.certificate_metrics import CertificateCollector
from servicekit.metrics import (
    LENGTH_BUCKETS,
    MODEL_NAME,
    REQUEST_BUCKETS,
    TOKEN_BUCKETS,
    WORK_BUCKETS,
    Labelled,
    new_registry,
)

_PREFIX = "pagestream_engine"

OUTCOMES = (
    *(reason.value for reason in FinishReason),
    CANCELLED,
    *(
        reason.lower()
        for reason in (
            Reason.BAD_REQUEST,
            Reason.EMPTY_PROMPT,
            Reason.PROMPT_TOO_LONG,
            Reason.TOKEN_OUT_OF_RANGE,
            Reason.BAD_SAMPLING_PARAMS,
            Reason.UNSUPPORTED_PARAMETER,
            Reason.QUEUE_FULL,
            Reason.SLOW_READER,
            Reason.DEADLINE_EXCEEDED,
            Reason.STARTING,
            Reason.DRAINING,
            Reason.ENGINE_FAILED,
            Reason.INTERNAL,
        )
    ),
)
"""All outcomes of a request."""

PHASES = ("schedule", "prepare", "launch", "wait", "update", "device", "total")
"""The host's phases of a step, then the device time and the time the step added to the total."""

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class EngineMetrics:
    """The series, and the methods that update them.

    Args:
        model_name: The label of all series.
        has_vllm_names: Whether they are shown under vLLM's names, too.

    Attributes:
        registry: Shows them, beside those of the process.
        certificates: Makes that about certificates, of the sources that it is given.
    """

    def __init__(self, model_name: str, *, has_vllm_names: bool = False) -> None:
        self._series = CollectorRegistry()
        self._add_state()
        self._add_counters()
        self._add_times()
        self._add_lengths()
        self.ranks = RankMetrics(_PREFIX, self._series)
        self.certificates = CertificateCollector(_PREFIX)
        self._series.register(self.certificates)
        self.registry = new_registry()
        self.registry.register(Labelled(self._series, MODEL_NAME, model_name))
        if has_vllm_names:
            self.registry.register(VllmMetrics(self._series, _PREFIX, model_name))

    def _add_state(self) -> None:
        self.requests_running = self._gauge(
            "requests_running", "Requests that hold blocks and take part in steps."
        )
        self.requests_waiting = self._gauge(
            "requests_waiting", "Requests that wait to be scheduled."
        )
        self.kv_cache_usage_ratio = self._gauge(
            "kv_cache_usage_ratio", "Share of the blocks that running requests hold, from 0 to 1."
        )
        self.kv_cache_blocks = self._gauge("kv_cache_blocks", "Blocks in the KV cache.")
        self.kv_cache_free_blocks = self._gauge(
            "kv_cache_free_blocks", "Blocks that are empty or hold cached prefixes not in use."
        )
        self.kv_cache_block_size_tokens = self._gauge(
            "kv_cache_block_size_tokens", "Tokens per block."
        )
        self.streams = self._gauge("streams", "Open GenerateMany streams, one per router.")
        self.cache_watchers = self._gauge(
            "cache_watchers", "Open streams of WatchCache and SubscribeKvEvents."
        )
        self.cached_blocks = self._gauge(
            "cached_blocks", "Blocks in the prefix cache, in use or not."
        )
        self.core_silence = self._gauge(
            "core_silence_seconds", "Seconds since the core's last heartbeat."
        )
        self.ready = self._gauge("ready", "1 while new requests are accepted, else 0.")
        self.model_info = Gauge(
            f"{_PREFIX}_model_info",
            "Always 1; the labels describe the model.",
            ("architecture", "dtype", "device", "fingerprint"),
            registry=self._series,
        )

    def _add_counters(self) -> None:
        self.requests = Counter(
            f"{_PREFIX}_requests",
            "Requests that ended, by finish reason, error reason or cancellation.",
            ("outcome",),
            registry=self._series,
        )
        self._requests_by_outcome = {
            outcome: self.requests.labels(outcome=outcome) for outcome in OUTCOMES
        }
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of requests that began to run."
        )
        self.computed_prompt_tokens = self._counter(
            "computed_prompt_tokens",
            "Prompt tokens computed, including those computed again after a preemption.",
        )
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated.")
        self.prefix_cache_query_tokens = self._counter(
            "prefix_cache_query_tokens", "Tokens looked up in the prefix cache."
        )
        self.prefix_cache_hit_tokens = self._counter(
            "prefix_cache_hit_tokens", "Tokens found in the prefix cache."
        )
        self.preemptions = self._counter(
            "preemptions", "Times that a running request lost its blocks to another."
        )
        self.invalid_logits = self._counter(
            "invalid_logits", "Requests that ended because their logits were NaN or infinite."
        )
        self.slow_readers = self._counter(
            "slow_readers", "Streams of any kind closed because their client read too slowly."
        )
        self.core_freezes = self._counter(
            "core_freezes", "Times that the core sent no heartbeat for too long."
        )
        self.malformed_messages = Counter(
            f"{_PREFIX}_malformed_messages",
            "Messages refused because they cannot be parsed or exceed a bound, by method.",
            ("method",),
            registry=self._series,
        )
        self.grammars = Counter(
            f"{_PREFIX}_grammars",
            "Grammars of requests that were checked, by outcome.",
            ("outcome",),
            registry=self._series,
        )
        self._grammars_by_outcome = {
            outcome: self.grammars.labels(outcome=outcome) for outcome in GRAMMAR_OUTCOMES
        }
        self.steps = self._counter("steps", "Steps that the engine has run.")

    def _add_times(self) -> None:
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            REQUEST_BUCKETS,
        )
        self.time_between_tokens = self._histogram(
            "time_between_tokens_seconds",
            "Seconds from one token of a request to its next.",
            TOKEN_BUCKETS,
        )
        self.queue_time = self._histogram(
            "queue_time_seconds",
            "Seconds from a request's arrival to its first step.",
            REQUEST_BUCKETS,
        )
        self.request_time = self._histogram(
            "request_time_seconds",
            "Seconds from a request's arrival to its end, whatever the outcome.",
            REQUEST_BUCKETS,
        )
        self.prefill_time = self._histogram(
            "prefill_time_seconds",
            "Seconds from a request's first step to its first token.",
            REQUEST_BUCKETS,
        )
        self.decode_time = self._histogram(
            "decode_time_seconds",
            "Seconds from a request's first token to its last, of requests that ended with any.",
            REQUEST_BUCKETS,
        )
        self.grammar_check_time = self._histogram(
            "grammar_check_time_seconds",
            "Seconds to check a grammar that was not known yet.",
            WORK_BUCKETS,
        )
        self.step_time = Histogram(
            f"{_PREFIX}_step_time_seconds",
            "Seconds of one step, by phase.",
            ("phase",),
            buckets=WORK_BUCKETS,
            registry=self._series,
        )
        self._step_time_by_phase = [self.step_time.labels(phase=phase) for phase in PHASES]
        self.batch_size = self._histogram(
            "batch_size_requests", "Requests that took part in one step.", _BATCH_BUCKETS
        )

    def _add_lengths(self) -> None:
        self.prompt_length = self._histogram(
            "prompt_length_tokens",
            "Prompt tokens of one request that began to run.",
            LENGTH_BUCKETS,
        )
        self.output_length = self._histogram(
            "output_length_tokens",
            "Tokens generated here for one request that ended with any.",
            LENGTH_BUCKETS,
        )
        self.max_tokens = self._histogram(
            "max_tokens",
            "Tokens that one request asked for at most, of those that set max_tokens.",
            LENGTH_BUCKETS,
        )

    def set_info(self, info: EngineInfo) -> None:
        """Sets what start-up found."""
        self.model_info.labels(
            architecture=info.architecture,
            dtype=info.dtype,
            device=info.device,
            fingerprint=info.model_fingerprint,
        ).set(1)
        self.kv_cache_blocks.set(info.num_blocks)
        self.kv_cache_free_blocks.set(info.num_blocks)
        self.kv_cache_block_size_tokens.set(info.block_size)

    def count_step(self, stats: StepStats) -> None:
        """Counts one step and sets the state after it."""
        self.requests_running.set(stats.num_running)
        self.requests_waiting.set(stats.num_waiting)
        num_blocks = stats.num_free_blocks + stats.num_used_blocks
        self.kv_cache_usage_ratio.set(stats.num_used_blocks / num_blocks if num_blocks else 0.0)
        self.kv_cache_free_blocks.set(stats.num_free_blocks)
        self.prefix_cache_query_tokens.inc(stats.num_prefix_query_tokens)
        self.prefix_cache_hit_tokens.inc(stats.num_prefix_hit_tokens)
        self.preemptions.inc(stats.num_preemptions)
        self.invalid_logits.inc(stats.num_invalid_logits)
        self.computed_prompt_tokens.inc(stats.num_prefill_tokens)
        self.generated_tokens.inc(stats.num_generated_tokens)
        if stats.num_scheduled_seqs:
            self.steps.inc()
            self.batch_size.observe(stats.num_scheduled_seqs)
            seconds = (
                stats.schedule_seconds,
                stats.prepare_seconds,
                stats.launch_seconds,
                stats.wait_seconds,
                stats.update_seconds,
                stats.device_seconds,
                stats.step_seconds,
            )
            for series, value in zip(self._step_time_by_phase, seconds, strict=True):
                series.observe(value)

    def count_admission(self, request: OpenRequest, admission: Admission) -> None:
        """Counts a request that was scheduled for the first time."""
        num_prompt_tokens = len(request.request.prompt_token_ids)
        max_tokens = request.request.sampling_params.max_tokens
        self.queue_time.observe(admission.queue_seconds)
        self.prompt_tokens.inc(num_prompt_tokens)
        self.prompt_length.observe(num_prompt_tokens)
        if max_tokens is not None:
            self.max_tokens.observe(max_tokens)

    def count_tokens(self, request: OpenRequest, num_tokens: int, now: float) -> None:
        """Observes the time that new tokens took."""
        if request.num_generated_tokens == 0:
            self.time_to_first_token.observe(now - request.request.arrival_time)
            self.prefill_time.observe(now - request.scheduled_time)
            num_tokens -= 1
            seconds = 0.0
        else:
            seconds = (now - request.last_token_time) / num_tokens
        for _ in range(num_tokens):
            self.time_between_tokens.observe(seconds)

    def count_refusal(self, outcome: str) -> None:
        """Counts a request that was refused before it opened."""
        self._count_outcome(outcome)

    def count_grammar(self, outcome: str, seconds: float) -> None:
        """Counts a grammar that was checked."""
        self._grammars_by_outcome[outcome].inc()
        if outcome != KNOWN:
            self.grammar_check_time.observe(seconds)

    def count_slow_reader(self) -> None:
        """Counts a stream that was closed because its client did not read."""
        self.slow_readers.inc()

    def count_malformed_message(self, method: str) -> None:
        """Counts a message that was refused before it was read."""
        self.malformed_messages.labels(method).inc()

    def count_end(self, request: OpenRequest, outcome: str, now: float) -> None:
        """Counts the end of a request."""
        self._count_outcome(outcome)
        self.request_time.observe(now - request.request.arrival_time)
        if request.num_generated_tokens:
            self.decode_time.observe(request.last_token_time - request.first_token_time)
            self.output_length.observe(request.num_generated_tokens)

    def _count_outcome(self, outcome: str) -> None:
        # An unexpected reason is a bug, but must not fail the request.
        known = outcome if outcome in self._requests_by_outcome else Reason.INTERNAL.lower()
        self._requests_by_outcome[known].inc()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, registry=self._series)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, registry=self._series)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self._series)
