"""One rank: its device, its share of the model and cache, and its steps."""

import logging
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.types import (
    NO_TOKEN,
    GrammarFailure,
    StepLogprobs,
    StepPlan,
    StepResult,
    int32_array,
)
from engine_service.errors import StartupError
from engine_service.layers.ranks import Ranks
from engine_service.models.causal_lm import CausalLM
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.loading import (
    build_model,
    check_weights,
    fill_randomly,
    load_weights,
)
from engine_service.models.model_config import ModelConfig
from engine_service.worker.cuda_graphs import StepGraph, StepGraphs
from engine_service.worker.device import is_out_of_memory
from engine_service.worker.grammar_masks import GrammarMasks
from engine_service.worker.graph_sizes import max_num_graphs
from engine_service.worker.input_batch import Bounds, InputBatch
from engine_service.worker.kv_cache import (
    KVCache,
    allocate_kv_cache,
    bytes_per_block,
    num_blocks_on_cpu,
    num_blocks_on_cuda,
)
from engine_service.worker.model_fit import DeviceMemory, check_fit
from engine_service.worker.model_runner import ModelRunner
from engine_service.worker.prefix_tiles import PrefixTiles
from engine_service.worker.rows import DeviceRows, Rows
from engine_service.worker.sampler import Logprobs, Sampled
from engine_service.worker.warm_up import warm_up_plans
from protos.wire.sampling_params import Grammar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from engine_service.grammar.matchers import SlotMatchers

logger = logging.getLogger(__name__)

# Memory the driver keeps for a graph of about ten kernels per layer, or twelve where prefixes are
# shared: 0.2 MB seen for ten on an H200.
_GRAPH_BYTES_PER_LAYER = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """What a worker needs to start."""

    model: ModelOptions
    cache: CacheOptions
    scheduler: SchedulerOptions
    checkpoint: Checkpoint
    model_config: ModelConfig
    max_model_len: int
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks
    matchers: "Future[SlotMatchers] | None" = None
    """Of grammars; None if the model does not support them."""

    @property
    def may_share_prefixes(self) -> bool:
        """Whether steps may come with prefixes that several rows share; as in `Scheduler`."""
        windows = self.model_config.windows_within(self.max_model_len)
        return self.cache.enable_prefix_caching and not any(windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingStep:
    """A step in flight: what it gives is on the host once `ended` has happened."""

    plan: StepPlan
    sampled: Sampled | None
    """On the host; None if no row yields a token."""
    prompt_logprobs: Logprobs | None
    """On the host; None if no row must bring any."""
    grammar_failures: Mapping[int, GrammarFailure]
    """As `StepResult.grammar_failures`."""
    started: torch.cuda.Event | None
    """When the device began the step. None where the work is already done at launch."""
    ended: torch.cuda.Event | None
    prepare_seconds: float
    launch_seconds: float


class Worker:
    """Runs step plans on one device.

    Args:
        batch: The state of its sequences.
        runner: Runs steps of any kind.
        graphs: Run the steps that fit into them; None runs all steps with the runner.
        device: The device.
        grammars: The masks of sequences with a grammar; None if there are none.
    """

    def __init__(
        self,
        batch: InputBatch,
        runner: ModelRunner,
        graphs: StepGraphs | None,
        device: torch.device,
        grammars: GrammarMasks | None = None,
    ) -> None:
        self._grammars = grammars
        self._batch = batch
        self._runner = runner
        self._graphs = graphs
        self._device = device

    def try_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar and lets it begin; raises BadGrammar. Waits for all of that."""
        assert self._grammars is not None, "a request with a grammar, which is not supported"
        self._grammars.try_grammar(grammar)

    def prepare(self, grammar: Grammar) -> bool:
        """Begins to compile a grammar; returns at once, whether it is compiled."""
        assert self._grammars is not None, "a request with a grammar, which is not supported"
        return self._grammars.prepare(grammar)

    def close(self) -> None:
        """Ends the threads of its grammars."""
        if self._grammars is not None:
            self._grammars.close()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Enqueues a step and the copy of its tokens to the host."""
        begun_at = time.perf_counter()
        rows = Rows.of(plan)
        prefixes = None
        # The kernels' twins read each sequence's keys anyway.
        if plan.shared_prefixes and self._device.type == "cuda":
            prefixes = PrefixTiles.of(plan, rows, self._batch.max_num_seqs)
        graph = None
        # Graphs keep the states of last tokens only.
        if self._graphs and not plan.num_prompt_logprobs:
            graph = self._graphs.fitting(rows, shares_prefixes=prefixes is not None)
        if graph is not None and not graph.shares_prefixes:
            prefixes = None
        sizes = graph or rows
        if self._grammars is not None:
            self._grammars.apply(plan)
        sent = self._batch.apply(plan, rows, sizes.num_rows, sizes.num_tokens, prefixes)
        prepared_at = time.perf_counter()
        started = self._record_event()
        sampled_slots = rows.slots[rows.sampled_rows]
        failures: dict[int, GrammarFailure] = {}

        def fill_masks() -> None:
            if self._grammars is not None:
                failures.update(self._grammars.fill(sampled_slots))

        sampled, prompt_logprobs = self._run(plan, rows, sent, graph, fill_masks)
        if started is not None:
            sampled = sampled and sampled.map(_to_host)
            prompt_logprobs = prompt_logprobs and Logprobs(*map(_to_host, prompt_logprobs))
        ended = self._record_event()
        if self._grammars is not None and sampled is not None:
            self._grammars.note(sampled_slots, sampled.token_ids, ended)
        return PendingStep(
            plan=plan,
            sampled=sampled,
            prompt_logprobs=prompt_logprobs,
            grammar_failures=_by_row(plan, failures),
            started=started,
            ended=ended,
            prepare_seconds=prepared_at - begun_at,
            launch_seconds=time.perf_counter() - prepared_at,
        )

    def _run(
        self,
        plan: StepPlan,
        rows: Rows,
        sent: DeviceRows,
        graph: StepGraph | None,
        fill_masks: Callable[[], None],
    ) -> tuple[Sampled | None, Logprobs | None]:
        """Enqueues the kernels of a step; returns what they give, in the order of the plan."""
        wants = self._batch.wants(rows)
        if graph is not None:
            sampled = graph.replay(sent, wants, fill_masks)
            if rows.is_decode and rows.is_in_order:
                return sampled.map(lambda x: x[: rows.num_rows]), None
            return sampled.map(lambda x: x[sent.sampled_rows]), None
        inputs = self._batch.read(sent, Bounds.of(rows))
        scoring = self._batch.scoring(plan, rows)
        if scoring is not None:
            return self._runner.score(inputs, wants, scoring, fill_masks)
        return self._runner.run(inputs, wants, fill_masks), None

    def collect(self, step: PendingStep) -> StepResult:
        """Waits for a step's tokens."""
        begun_at = time.perf_counter()
        device_seconds = step.launch_seconds
        if step.started is not None and step.ended is not None:
            step.ended.synchronize()
            device_seconds = step.started.elapsed_time(step.ended) / 1e3
        token_ids = [] if step.sampled is None else step.sampled.token_ids.tolist()
        logprobs = step.sampled and step.sampled.logprobs
        return StepResult(
            token_counts=int32_array(step.plan.is_sampled.tolist()),
            token_ids=int32_array(token_ids),
            logprobs=_packed(logprobs),
            prompt_logprobs=_packed(step.prompt_logprobs),
            grammar_failures=step.grammar_failures,
            grammar_token_ids=self._grammar_token_ids(step, token_ids),
            prepare_seconds=step.prepare_seconds,
            launch_seconds=step.launch_seconds,
            wait_seconds=time.perf_counter() - begun_at,
            device_seconds=device_seconds,
        )

    def _grammar_token_ids(
        self, step: PendingStep, token_ids: list[int]
    ) -> "dict[int, array[int]]":
        """As `StepResult.grammar_token_ids`."""
        if self._grammars is None or NO_TOKEN not in token_ids:
            return {}
        found = {}
        plan = step.plan
        sampled_rows = [row for row, is_sampled in enumerate(plan.is_sampled) if is_sampled]
        for row, token_id in zip(sampled_rows, token_ids, strict=True):
            if token_id == NO_TOKEN and row not in step.grammar_failures:
                # The step after it may have been launched, but nothing follows `NO_TOKEN`.
                allowed = self._grammars.allowed_token_ids(plan.slots[row])
                if allowed is not None:
                    found[row] = allowed
        return found

    def _record_event(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def _by_row(plan: StepPlan, failures: Mapping[int, GrammarFailure]) -> Mapping[int, GrammarFailure]:
    """Returns failures by row of the plan, given by place among the rows that yield a token."""
    if not failures:
        return failures
    sampled_rows = [row for row, is_sampled in enumerate(plan.is_sampled) if is_sampled]
    return {sampled_rows[place]: failure for place, failure in failures.items()}


def _packed(logprobs: Logprobs | None) -> StepLogprobs | None:
    """Returns logprobs on the host as the core takes them."""
    if logprobs is None:
        return None
    return StepLogprobs(
        logprobs=array("f", logprobs.of_tokens.numpy().tobytes()),
        top_token_ids=array("i", logprobs.top_token_ids.contiguous().numpy().tobytes()),
        top_logprobs=array("f", logprobs.of_top.contiguous().numpy().tobytes()),
    )


def _to_host(x: torch.Tensor) -> torch.Tensor:
    """Returns a copy on the host, which is complete once the device has come so far."""
    on_host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return on_host.copy_(x, non_blocking=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedWorker:
    """A worker that can run steps, and what its start-up found."""

    worker: Worker
    num_blocks: int
    """Blocks of its cache that can hold tokens."""
    weights_digest: str
    """As `load_weights` returns it; empty for random weights."""


def start_worker(config: WorkerConfig) -> StartedWorker:
    """Loads the model, sizes and allocates the KV cache, and runs steps to warm up.

    Raises:
        StartupError: A weights file is bad, or the device has not enough memory.
    """
    try:
        return _start_worker(config)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise StartupError(
            f"{config.device} does not have enough memory for the model, its largest step and its "
            "CUDA graphs; lower max_num_batched_tokens, max_num_seqs, num_blocks or "
            "gpu_memory_utilization, set enforce_eager, or free memory of the device "
            f"({str(error).splitlines()[0]})"
        ) from error


@torch.inference_mode()
def _start_worker(config: WorkerConfig) -> StartedWorker:
    is_cuda = config.device.type == "cuda"
    block_size = config.cache.block_size
    max_num_seqs = config.scheduler.max_num_seqs
    num_kv_heads = config.model_config.num_kv_heads_of(config.ranks.size)
    part = replace(config.model_config, num_kv_heads=num_kv_heads)
    config.ranks.connect(
        config.device, part.hidden_size, config.dtype, config.scheduler.max_num_batched_tokens
    )
    model, weights_digest = _load_model(config)
    batch = InputBatch(
        max_num_seqs=max_num_seqs,
        max_model_len=config.max_model_len,
        block_size=block_size,
        vocab_size=config.model_config.vocab_size,
        device=config.device,
    )

    def allocate(num_blocks: int) -> KVCache:
        return allocate_kv_cache(
            part,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=config.dtype,
            device=config.device,
        )

    if is_cuda:
        torch.cuda.reset_peak_memory_stats(config.device)
    # Warm-up rows have no blocks: they write to the null block and read it.
    warm_up = Worker(
        batch, ModelRunner(model, allocate(0), batch, config.ranks), None, config.device
    )
    plans = warm_up_plans(
        config.scheduler,
        config.max_model_len,
        is_largest=is_cuda,
        shared_block_size=block_size if config.may_share_prefixes else None,
    )
    for plan in plans:
        warm_up.collect(warm_up.launch(plan))
    block_bytes = bytes_per_block(part, block_size, config.dtype)
    if is_cuda:
        graph_bytes = 0 if config.model.enforce_eager else _graph_bytes(config)
        num_blocks = num_blocks_on_cuda(config.cache, block_bytes, graph_bytes, config.device)
    else:
        num_blocks = num_blocks_on_cpu(config.cache, block_bytes)
    # The scheduler plans for all ranks alike.
    num_blocks = config.ranks.minimum(num_blocks)
    kv_cache = allocate(num_blocks)
    logger.info(
        "kv cache allocated num_blocks=%d block_size=%d bytes=%d",
        num_blocks,
        block_size,
        kv_cache.blocks.nbytes,
    )
    runner = ModelRunner(model, kv_cache, batch, config.ranks)
    graphs = None
    if is_cuda and not config.model.enforce_eager:
        graphs = StepGraphs.capture(
            runner,
            batch,
            config.scheduler.max_num_batched_tokens,
            config.ranks,
            may_share=config.may_share_prefixes,
        )
    return StartedWorker(
        worker=Worker(
            batch,
            runner,
            graphs,
            config.device,
            None if config.matchers is None else GrammarMasks(config.matchers, batch.sampling),
        ),
        num_blocks=num_blocks,
        weights_digest=weights_digest,
    )


def _graph_bytes(config: WorkerConfig) -> int:
    """Returns the maximum memory that the driver keeps for the CUDA graphs."""
    scheduler = config.scheduler
    num_graphs = max_num_graphs(
        scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens,
        may_share=config.may_share_prefixes,
    )
    return num_graphs * config.model_config.num_layers * _GRAPH_BYTES_PER_LAYER


def _load_model(config: WorkerConfig) -> tuple[CausalLM, str]:
    """Returns the model and the digest of its weights."""
    is_random = config.model.load_format == "dummy"
    if not is_random:
        # Checked first, so that nothing is allocated for sizes that do not match the files.
        check_weights(config.model_config, config.checkpoint)
    if config.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(config.device)
        memory = DeviceMemory(
            name=str(config.device),
            free=free,
            total=total,
            utilization=config.cache.gpu_memory_utilization,
        )
        check_fit(config.model_config, config.dtype, config.ranks.size, memory)
    model = build_model(
        config.model_config, config.max_model_len, config.dtype, config.device, config.ranks
    )
    if is_random:
        fill_randomly(model, config.model.seed, config.model_config.initializer_range)
        return model, ""
    ranks = config.ranks
    return model, load_weights(
        model,
        config.checkpoint,
        rank=ranks.rank,
        num_ranks=ranks.size,
        sum_over_ranks=ranks.sum_on_cpu,
    )
