"""What each rank of an engine does to start."""

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.types import EngineInfo
from engine_service.errors import StartupError
from engine_service.grammar.matchers import SlotMatchers
from engine_service.grammar.tokenizer import FILE_NAME, UnusableTokenizer, read_tokenizer
from engine_service.layers.ranks import Ranks
from engine_service.models.checkpoint import Checkpoint, fingerprint
from engine_service.models.config import parse_config
from engine_service.models.dtypes import READABLE
from engine_service.models.end_tokens import MAX_TOKENIZER_FILE_BYTES
from engine_service.models.model_config import ModelConfig
from engine_service.models.name import served_name
from engine_service.models.plain_file import read_own_file
from engine_service.worker.device import check_head_dim, choose_dtype
from engine_service.worker.worker import Worker, WorkerConfig, start_worker
from protos.wire.sampling_params import SUPPORTED_PARAMS, SamplingParams

logger = logging.getLogger(__name__)

_MAX_MASK_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOptions:
    """The options of an engine that its ranks need; equal for all of them."""

    model: ModelOptions
    cache: CacheOptions
    scheduler: SchedulerOptions


def read_model_config(options: ModelOptions, checkpoint: Checkpoint) -> ModelConfig:
    """Reads config.json.

    Raises:
        StartupError: The model is not supported, or cannot be divided over so many ranks.
    """
    config = parse_config(checkpoint.read_config(), str(checkpoint.folder / "config.json"))
    config.check_ranks(options.tensor_parallel_size)
    return config


def start_rank(
    options: RankOptions, checkpoint: Checkpoint, device: torch.device, ranks: Ranks
) -> tuple[Worker, EngineInfo]:
    """Loads this rank's part of the model and makes it ready to run steps.

    Raises:
        StartupError: The model is broken or unsupported, or the device's memory is too small.
    """
    model = options.model
    config = read_model_config(model, checkpoint)
    check_head_dim(config, device)
    dtype = choose_dtype(model, config, device)
    max_model_len = _max_model_len(model, config)
    eos_token_ids = checkpoint.read_eos_token_ids(config.vocab_size)
    matchers = _start_matchers(checkpoint, config.vocab_size, eos_token_ids)
    started = start_worker(
        WorkerConfig(
            model=model,
            cache=options.cache,
            scheduler=options.scheduler,
            checkpoint=checkpoint,
            model_config=config,
            max_model_len=max_model_len,
            device=device,
            dtype=READABLE[dtype].torch_dtype,
            ranks=ranks,
            matchers=matchers,
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
        block_size=options.cache.block_size,
        num_blocks=started.num_blocks,
        max_num_seqs=options.scheduler.max_num_seqs,
        max_num_batched_tokens=options.scheduler.max_num_batched_tokens,
        eos_token_ids=eos_token_ids,
        tensor_parallel_size=ranks.size,
        dtype=dtype,
        device=str(device),
        max_logprobs=options.scheduler.max_logprobs,
        windows=config.windows_within(max_model_len),
        supported_params=_supported_params(matchers, ranks.rank),
        default_sampling_params=_default_sampling_params(model, checkpoint, ranks),
    )
    logger.info(
        "model ready model=%s architecture=%s dtype=%s device=%s rank=%d num_ranks=%d "
        "max_model_len=%d fingerprint=%s",
        info.model_name,
        info.architecture,
        dtype,
        device,
        ranks.rank,
        ranks.size,
        max_model_len,
        model_fingerprint,
    )
    return started.worker, info


def _start_matchers(
    checkpoint: Checkpoint, vocab_size: int, eos_token_ids: frozenset[int]
) -> "Future[SlotMatchers] | None":
    """Reads the tokens for grammars beside all else; None if the model has none to read."""
    path = checkpoint.folder / FILE_NAME
    if not path.is_file():
        return None

    def read() -> SlotMatchers:
        content = read_own_file(path, MAX_TOKENIZER_FILE_BYTES)
        tokenizer = read_tokenizer(content, vocab_size, eos_token_ids)
        return SlotMatchers(tokenizer, _num_mask_threads())

    reader = ThreadPoolExecutor(1, "grammar-tokens")
    reading = reader.submit(read)
    reader.shutdown(wait=False)
    return reading


def _num_mask_threads() -> int:
    return max(1, min(_MAX_MASK_THREADS, (os.cpu_count() or 1) // 2))


def _supported_params(matchers: "Future[SlotMatchers] | None", rank: int) -> tuple[str, ...]:
    """Returns what the engine supports; waits until the tokens for grammars are read."""
    if matchers is None:
        obstacle = f"the model folder has no {FILE_NAME}"
    else:
        error = matchers.exception()
        if error is None:
            return SUPPORTED_PARAMS
        if not isinstance(error, UnusableTokenizer):
            raise error
        obstacle = str(error)
    if rank == 0:
        logger.info("grammars unsupported detail=%s", obstacle)
    return tuple(name for name in SUPPORTED_PARAMS if name != "grammar")


def _default_sampling_params(
    options: ModelOptions, checkpoint: Checkpoint, ranks: Ranks
) -> SamplingParams:
    # The first rank alone reports them, and logs what is wrong with them.
    if options.generation_config == "none" or ranks.rank != 0:
        return SamplingParams()
    return checkpoint.read_default_sampling_params()


def _max_model_len(options: ModelOptions, config: ModelConfig) -> int:
    if options.max_model_len is None:
        return config.max_sequence_len
    if options.max_model_len > config.max_sequence_len:
        raise StartupError(
            f"max_model_len is {options.max_model_len}, over the model's "
            f"{config.max_sequence_len_field} {config.max_sequence_len}; lower max_model_len"
        )
    return options.max_model_len
