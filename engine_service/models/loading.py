"""Weights into a model: read from safetensors files, or made up."""

import logging
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
import xxhash
from tqdm import tqdm

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.config import ModelConfig
from engine_service.models.qwen3 import Qwen3

logger = logging.getLogger(__name__)

_PLAIN_DTYPES = frozenset({"F32", "BF16", "F16"})
_DUMMY_CHUNK = 1 << 22


def build_model(
    config: ModelConfig, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> Qwen3:
    """Builds the model that the config names, its weights not yet set."""
    with device:
        match config.architecture:
            case "Qwen3ForCausalLM":
                return Qwen3(config, max_model_len, dtype)
    raise AssertionError(f"{config.architecture} passed the config's check but is not built here")


@torch.inference_mode()
def load_weights(model: Qwen3, checkpoint: Checkpoint) -> None:
    """Reads each tensor of a checkpoint once, to its place on the model's device.

    A packed parameter is filled slice by slice; values are converted to the model's dtype.

    Raises:
        StartupError: A file is not whole, or a tensor is missing, unexpected, misshapen or stored
            in an unsupported way; the message names it.
    """
    targets = dict(model.checkpoint_tensors())
    # Some checkpoints store a tied head once more, and old ones the rotary frequencies.
    tied = set() if "lm_head.weight" in targets else {"lm_head.weight"}
    missing = set(targets)
    total = sum(path.stat().st_size for path in checkpoint.weights_files)
    next_quarter = 1
    with tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None
    ) as progress:
        num_done = 0
        for path in checkpoint.weights_files:
            for name, num_bytes in _copy_tensors(path, targets, ignored=tied):
                missing.discard(name)
                progress.update(num_bytes)
                num_done += num_bytes
                # Without a terminal there is no bar, and a log is told no more than it needs.
                if progress.disable and num_done * 4 >= total * next_quarter:
                    logger.info("weights_loading percent=%d", num_done * 100 // total)
                    next_quarter = num_done * 4 // total + 1
    if missing:
        name = min(missing)
        raise StartupError(
            f"{checkpoint.folder}: tensor {name} {list(targets[name].shape)} is missing"
            + (f", and {len(missing) - 1} more are" if len(missing) > 1 else "")
        )
    logger.info("weights_loaded files=%d bytes=%d", len(checkpoint.weights_files), total)


def _copy_tensors(
    path: Path, targets: dict[str, torch.Tensor], ignored: set[str]
) -> Iterator[tuple[str, int]]:
    """Copies a file's tensors to their targets; yields the name of each and its bytes as stored."""
    device = str(next(iter(targets.values())).device)
    try:
        with safetensors.safe_open(path, framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                if name in ignored or name.endswith("rotary_emb.inv_freq"):
                    continue
                if name not in targets:
                    raise StartupError(f"{path}: tensor {name} is unexpected in this architecture")
                target, stored = targets[name], file.get_slice(name)
                if stored.get_shape() != list(target.shape):
                    raise StartupError(
                        f"{path}: tensor {name} is {stored.get_shape()}, "
                        f"but config.json makes it {list(target.shape)}"
                    )
                if stored.get_dtype() not in _PLAIN_DTYPES:
                    raise StartupError(
                        f"{path}: tensor {name} is stored as {stored.get_dtype()}; "
                        f"supported are {', '.join(sorted(_PLAIN_DTYPES))}"
                    )
                tensor = file.get_tensor(name)
                target.copy_(tensor)
                yield name, tensor.nbytes
    except safetensors.SafetensorError as error:
        raise StartupError(
            f"{path}: is not a whole safetensors file; fetch it again ({error})"
        ) from error


@torch.inference_mode()
def fill_randomly(model: Qwen3, seed: int, std: float) -> None:
    """Sets norm weights to 1 and all others to random values of mean 0.

    A value depends on seed, tensor name and index alone, so it is the same on every device.

    Args:
        model: The model to fill.
        seed: Chooses the values.
        std: Their standard deviation.
    """
    for name, target in model.checkpoint_tensors():
        if target.dim() == 1:
            target.fill_(1.0)
            continue
        key = xxhash.xxh3_64_intdigest(name.encode(), seed=seed) - (1 << 63)
        flat = target.view(-1)
        for begin in range(0, flat.numel(), _DUMMY_CHUNK):
            chunk = flat[begin : begin + _DUMMY_CHUNK]
            chunk.copy_(_noise(key, begin, chunk.numel(), chunk.device).mul_(std))


def _noise(key: int, begin: int, count: int, device: torch.device) -> torch.Tensor:
    """Returns the values `begin` and following of a sequence of near-normal numbers.

    A 64-bit hash of the index (the finalizer of SplitMix64) is taken as four 16-bit integers,
    whose sum is nearly normal and exact in float32.

    Returns:
        [count] float32 of mean 0 and standard deviation 1.
    """
    x = torch.arange(begin, begin + count, dtype=torch.int64, device=device)
    x.mul_(0x9E3779B97F4A7C15 - (1 << 64)).add_(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        x.mul_(factor - (1 << 64))
    x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))
    total = (x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + ((x >> 48) & 0xFFFF)
    mean, std = 2 * 65535.0, ((65536.0**2 - 1) / 3) ** 0.5
    # Division by a number is not the same operation on every device; multiplication is.
    return total.float().sub_(mean).mul_(1 / std)
