"""One rank: its device, its share of the model and cache, and the steps that it runs."""

import logging
import time
from dataclasses import dataclass

import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.types import StepPlan, StepResult, int32_array
from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.config import ModelConfig
from engine_service.models.loading import build_model, fill_randomly, load_weights
from engine_service.models.qwen3 import Qwen3
from engine_service.worker.device import is_out_of_memory
from engine_service.worker.input_batch import InputBatch
from engine_service.worker.kv_cache import (
    KVCache,
    allocate_kv_cache,
    bytes_per_block,
    num_blocks_on_cpu,
    num_blocks_on_cuda,
)
from engine_service.worker.model_runner import ModelRunner
from engine_service.worker.warm_up import warm_up_plans

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """What a worker needs to know to start."""

    model: ModelOptions
    cache: CacheOptions
    scheduler: SchedulerOptions
    checkpoint: Checkpoint
    model_config: ModelConfig
    max_model_len: int
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingStep:
    """A step on its way: its tokens arrive in `token_ids` when `is_done` has happened."""

    plan: StepPlan
    token_ids: torch.Tensor | None
    """[num_sampled] int64 on the host."""
    is_done: torch.cuda.Event | None
    """None where the work is already done at launch."""
    prepare_seconds: float
    started_at: float
    """`time.perf_counter()` when the model was started."""


class Worker:
    """Runs step plans on one device."""

    def __init__(self, batch: InputBatch, runner: ModelRunner, device: torch.device) -> None:
        self._batch = batch
        self._runner = runner
        self._device = device

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Enqueues a step and the copy of its tokens to the host."""
        started_at = time.perf_counter()
        inputs = self._batch.prepare(plan)
        prepared_at = time.perf_counter()
        token_ids = self._runner.run(inputs)
        is_done = None
        if self._device.type == "cuda":
            if token_ids is not None:
                on_host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=True)
                token_ids = on_host.copy_(token_ids, non_blocking=True)
            is_done = torch.cuda.current_stream(self._device).record_event()
        return PendingStep(
            plan=plan,
            token_ids=token_ids,
            is_done=is_done,
            prepare_seconds=prepared_at - started_at,
            started_at=prepared_at,
        )

    def collect(self, step: PendingStep) -> StepResult:
        """Waits for a step's tokens."""
        if step.is_done is not None:
            step.is_done.synchronize()
        token_ids = [] if step.token_ids is None else step.token_ids.tolist()
        return StepResult(
            token_counts=int32_array(step.plan.is_sampled.tolist()),
            token_ids=int32_array(token_ids),
            prepare_seconds=step.prepare_seconds,
            execute_seconds=time.perf_counter() - step.started_at,
        )


def start_worker(config: WorkerConfig) -> tuple[Worker, int]:
    """Loads the model, sizes and allocates the KV cache, and runs steps to warm up.

    Returns:
        The worker, and the number of its cache's blocks that can hold tokens.

    Raises:
        StartupError: A weights file is bad, or the device has not enough memory.
    """
    try:
        return _start_worker(config)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise StartupError(
            f"{config.device} has not enough memory for the model and its largest step; lower "
            "max_num_batched_tokens or max_num_seqs, or free the device "
            f"({str(error).splitlines()[0]})"
        ) from error


@torch.inference_mode()
def _start_worker(config: WorkerConfig) -> tuple[Worker, int]:
    is_cuda = config.device.type == "cuda"
    block_size = config.cache.block_size
    max_num_seqs = config.scheduler.max_num_seqs
    model = _load_model(config)
    batch = InputBatch(
        max_num_seqs=max_num_seqs,
        max_model_len=config.max_model_len,
        block_size=block_size,
        device=config.device,
    )

    def allocate(num_blocks: int) -> KVCache:
        return allocate_kv_cache(
            config.model_config,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=config.dtype,
            device=config.device,
        )

    if is_cuda:
        torch.cuda.reset_peak_memory_stats(config.device)
    # Warm-up rows have no blocks: they write to the null block and read it.
    warm_up = Worker(batch, ModelRunner(model, allocate(0), batch), config.device)
    for plan in warm_up_plans(config.scheduler, config.max_model_len, is_largest=is_cuda):
        warm_up.collect(warm_up.launch(plan))
    block_bytes = bytes_per_block(config.model_config, block_size, config.dtype)
    if is_cuda:
        num_blocks = num_blocks_on_cuda(config.cache, block_bytes, config.device)
    else:
        num_blocks = num_blocks_on_cpu(config.cache, block_bytes)
    kv_cache = allocate(num_blocks)
    logger.info(
        "kv_cache_allocated num_blocks=%d block_size=%d bytes=%d",
        num_blocks,
        block_size,
        kv_cache.blocks.nbytes,
    )
    return Worker(batch, ModelRunner(model, kv_cache, batch), config.device), num_blocks


def _load_model(config: WorkerConfig) -> Qwen3:
    model = build_model(config.model_config, config.max_model_len, config.dtype, config.device)
    if config.model.load_format == "dummy":
        fill_randomly(model, config.model.seed, config.model_config.initializer_range)
    else:
        load_weights(model, config.checkpoint)
    return model
