"""The core's executor, with its one worker in this process."""

import logging

import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.types import EngineInfo, StepPlan, StepResult
from engine_service.errors import StartupError
from engine_service.models.checkpoint import fingerprint, resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.dtypes import COMPUTED
from engine_service.models.model_config import ModelConfig
from engine_service.models.name import served_name
from engine_service.worker.device import check_head_dim, choose_dtype, set_up_device
from engine_service.worker.worker import PendingStep, Worker, WorkerConfig, start_worker

logger = logging.getLogger(__name__)


class LocalExecutor:
    """Runs each plan on one worker. Implements `engine_service.core.executor.Executor`."""

    def __init__(self, worker: Worker, device: torch.device) -> None:
        self._worker: Worker | None = worker
        self._device = device

    def launch(self, plan: StepPlan) -> PendingStep:
        """Starts a step and returns without waiting for its tokens."""
        assert self._worker is not None, "closed"
        return self._worker.launch(plan)

    def collect(self, handle: PendingStep) -> StepResult:
        """Waits for a step's tokens."""
        assert self._worker is not None, "closed"
        return self._worker.collect(handle)

    def close(self) -> None:
        """Frees model and cache. A second call does nothing."""
        self._worker = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def start_executor(
    model: ModelOptions, cache: CacheOptions, scheduler: SchedulerOptions
) -> tuple[LocalExecutor, EngineInfo]:
    """Loads a model and makes it ready to run steps.

    Sets torch's number of threads for the whole process if `cpu_threads` is given.

    Raises:
        StartupError: The model is missing, broken or unsupported, the device does not exist, or its
            memory is too small.
    """
    device = set_up_device(model)
    is_dummy = model.load_format == "dummy"
    checkpoint = resolve_checkpoint(model.model, with_weights=not is_dummy)
    config = parse_config(checkpoint.read_config(), str(checkpoint.folder / "config.json"))
    check_head_dim(config, device)
    dtype = choose_dtype(model, config, device)
    max_model_len = _max_model_len(model, config)
    eos_token_ids = checkpoint.read_eos_token_ids(config.vocab_size)
    started = start_worker(
        WorkerConfig(
            model=model,
            cache=cache,
            scheduler=scheduler,
            checkpoint=checkpoint,
            model_config=config,
            max_model_len=max_model_len,
            device=device,
            dtype=COMPUTED[dtype].torch_dtype,
        )
    )
    model_fingerprint = fingerprint(
        checkpoint,
        dtype=dtype,
        load_format=model.load_format,
        seed=model.seed,
        weights=started.weights_digest,
    )
    info = EngineInfo(
        model_name=served_name(model, checkpoint.folder),
        architecture=config.architecture,
        model_fingerprint=model_fingerprint,
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        block_size=cache.block_size,
        num_blocks=started.num_blocks,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        eos_token_ids=eos_token_ids,
        tensor_parallel_size=1,
        dtype=dtype,
        device=str(device),
    )
    logger.info(
        "model ready model=%s architecture=%s dtype=%s device=%s max_model_len=%d fingerprint=%s",
        info.model_name,
        info.architecture,
        dtype,
        device,
        max_model_len,
        model_fingerprint,
    )
    return LocalExecutor(started.worker, device), info


def _max_model_len(options: ModelOptions, config: ModelConfig) -> int:
    if options.max_model_len is None:
        return config.max_position_embeddings
    if options.max_model_len > config.max_position_embeddings:
        raise StartupError(
            f"max_model_len is {options.max_model_len}, over the model's max_position_embeddings "
            f"{config.max_position_embeddings}; lower max_model_len"
        )
    return options.max_model_len
