"""Weights into a model: read from safetensors files, or made up."""

import logging
from pathlib import Path

import torch
import xxhash
from tqdm import tqdm

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.config import ModelConfig
from engine_service.models.qwen3 import Qwen3
from engine_service.models.tensor_file import StoredTensor, read_tensor_file
from engine_service.models.tensor_reader import DTYPES, Transfer, read_tensors

logger = logging.getLogger(__name__)

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


def load_weights(model: Qwen3, checkpoint: Checkpoint) -> None:
    """Reads each tensor of a checkpoint once, to its place on the model's device.

    A packed parameter is filled slice by slice; values are converted to the model's dtype. All
    files are checked before the first tensor is read.

    Raises:
        StartupError: A file is not whole, or a tensor is missing, unexpected, misshapen or stored
            in an unsupported way; the message names it.
    """
    transfers = _plan_transfers(model, checkpoint)
    total = sum(transfer.stored.end - transfer.stored.begin for transfer in transfers)
    num_done = 0
    next_quarter = 1
    with tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None
    ) as progress:
        for num_bytes in read_tensors(transfers):
            progress.update(num_bytes)
            num_done += num_bytes
            # Without a terminal there is no bar, and a log is told no more than it needs.
            if progress.disable and num_done * 4 >= total * next_quarter:
                logger.info("weights_loading percent=%d", num_done * 100 // total)
                next_quarter = num_done * 4 // total + 1
    logger.info("weights_loaded files=%d bytes=%d", len(checkpoint.weights_files), total)


def _plan_transfers(model: Qwen3, checkpoint: Checkpoint) -> list[Transfer]:
    """Finds the place of each stored tensor."""
    targets = dict(model.checkpoint_tensors())
    # Some checkpoints store a tied head once more, and old ones the rotary frequencies.
    tied = set() if "lm_head.weight" in targets else {"lm_head.weight"}
    transfers = []
    missing = set(targets)
    for path in checkpoint.weights_files:
        for name, stored in read_tensor_file(path).tensors.items():
            if name in tied or name.endswith("rotary_emb.inv_freq"):
                continue
            if name not in targets:
                raise StartupError(f"{path}: tensor {name} is unexpected in this architecture")
            _check_stored(path, name, stored, targets[name])
            transfers.append(Transfer(path=path, stored=stored, target=targets[name]))
            missing.discard(name)
    if missing:
        name = min(missing)
        raise StartupError(
            f"{checkpoint.folder}: tensor {name} {list(targets[name].shape)} is missing"
            + (f", and {len(missing) - 1} more are" if len(missing) > 1 else "")
        )
    return transfers


def _check_stored(path: Path, name: str, stored: StoredTensor, target: torch.Tensor) -> None:
    if stored.shape != list(target.shape):
        raise StartupError(
            f"{path}: tensor {name} is {stored.shape}, "
            f"but config.json makes it {list(target.shape)}"
        )
    if stored.dtype not in DTYPES:
        raise StartupError(
            f"{path}: tensor {name} is stored as {stored.dtype}; "
            f"supported are {', '.join(sorted(DTYPES))}"
        )
    if stored.end - stored.begin != target.numel() * DTYPES[stored.dtype].itemsize:
        raise StartupError(
            f"{path}: is not a whole safetensors file; tensor {name} has "
            f"{stored.end - stored.begin} bytes, which is not its size"
        )


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
