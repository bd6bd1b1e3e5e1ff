"""Weights into a model: read from safetensors files, or made up."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
import xxhash
from tqdm import tqdm

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.config import ModelConfig
from engine_service.models.qwen3 import Qwen3
from engine_service.models.tensor_file import StoredTensor
from engine_service.models.tensor_reader import DTYPES, Transfer, read_tensors

logger = logging.getLogger(__name__)

_DUMMY_CHUNK = 1 << 22
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def build_model(
    config: ModelConfig, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> Qwen3:
    """Builds the model that the config names, its weights not yet set."""
    with device:
        match config.architecture:
            case "Qwen3ForCausalLM":
                return Qwen3(config, max_model_len, dtype)
    raise AssertionError(f"{config.architecture} passed the config's check but is not built here")


def check_weights(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Compares what a checkpoint says of its tensors with the config; allocates and reads nothing.

    Raises:
        StartupError: As of `load_weights`, apart from what only the values tell.
    """
    shapes = build_model(config, 1, torch.float32, torch.device("meta"))
    _plan_transfers(dict(shapes.checkpoint_tensors()), checkpoint)


def load_weights(model: Qwen3, checkpoint: Checkpoint) -> str:
    """Reads each tensor of a checkpoint once, to its place on the model's device.

    A packed parameter is filled slice by slice; values are converted to the model's dtype. All
    files are checked before the first tensor is read.

    Returns:
        32 hexadecimal digits (xxh3-128) over the names, types, shapes and bytes of what was read.

    Raises:
        StartupError: A file is not whole, or a tensor is missing, unexpected, misshapen, stored
            in an unsupported way or twice, or not finite; the message names it.
    """
    targets = dict(model.checkpoint_tensors())
    transfers = _plan_transfers(targets, checkpoint)
    total = sum(transfer.stored.end - transfer.stored.begin for transfer in transfers)
    digests = {transfer.stored.name: xxhash.xxh3_128() for transfer in transfers}
    num_done = 0
    next_quarter = 1
    with tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None
    ) as progress:
        for piece in read_tensors(transfers):
            digests[piece.name].update(piece.digest)
            progress.update(piece.num_bytes)
            num_done += piece.num_bytes
            # Without a terminal there is no bar, and a log is told no more than it needs.
            if progress.disable and num_done * 4 >= total * next_quarter:
                logger.info("weights_loading percent=%d", num_done * 100 // total)
                next_quarter = num_done * 4 // total + 1
    _check_values(transfers)
    if _HEAD not in targets:
        _check_tied_head(transfers)
    logger.info("weights_loaded files=%d bytes=%d", len(checkpoint.weights_files), total)
    return _whole_digest(transfers, digests)


def _plan_transfers(targets: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> list[Transfer]:
    """Finds the place of each stored tensor.

    Args:
        targets: The place for each tensor, by name.
        checkpoint: Where they are stored.
    """
    places = dict(targets)
    stored = checkpoint.stored_tensors()
    if _HEAD not in targets and _HEAD in stored:
        # A tied model's one matrix may be stored under either name, or under both.
        embedding = targets[_EMBEDDING]
        places[_HEAD] = torch.empty_like(embedding) if _EMBEDDING in stored else embedding
        if _EMBEDDING not in stored:
            del places[_EMBEDDING]
    transfers = []
    for name, tensor in stored.items():
        # Which old checkpoints hold.
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in places:
            raise StartupError(f"{tensor} is unexpected in this architecture")
        _check_stored(tensor, places[name])
        transfers.append(Transfer(stored=tensor, target=places[name]))
    missing = places.keys() - stored.keys()
    if missing:
        name = min(missing)
        raise StartupError(
            f"{checkpoint.folder}: tensor {name} {list(places[name].shape)} is missing"
            + (f", and {len(missing) - 1} more are" if len(missing) > 1 else "")
        )
    return transfers


def _check_stored(stored: StoredTensor, target: torch.Tensor) -> None:
    if stored.shape != target.shape:
        raise StartupError(
            f"{stored} is {list(stored.shape)}, but config.json makes it {list(target.shape)}"
        )
    if stored.dtype not in DTYPES:
        raise StartupError(
            f"{stored} is stored as {stored.dtype}; supported are {', '.join(sorted(DTYPES))}"
        )


def _check_values(transfers: Sequence[Transfer]) -> None:
    """Refuses weights that are not finite in the model's dtype.

    A NaN passes through the least and the largest value, which take one pass and no memory; all
    are fetched at once, so that a GPU is waited for once.
    """
    extremes = torch.stack(
        [extreme for transfer in transfers for extreme in transfer.target.aminmax()]
    )
    for transfer, values in zip(transfers, extremes.view(-1, 2).tolist(), strict=True):
        if all(map(math.isfinite, values)):
            continue
        stored, dtype = transfer.stored, transfer.target.dtype
        found = "NaN"
        if not any(map(math.isnan, values)):
            found = "infinite values"
            if DTYPES[stored.dtype] != dtype:
                limit = torch.finfo(dtype).max
                found += f", or values over {limit:.3g}, the largest of {_name(dtype)}"
        raise StartupError(f"{stored}, stored as {stored.dtype}, holds {found}")


def _check_tied_head(transfers: Sequence[Transfer]) -> None:
    """Refuses a tied model whose head is stored too, and is another."""
    by_name = {transfer.stored.name: transfer for transfer in transfers}
    head, embedding = by_name.get(_HEAD), by_name.get(_EMBEDDING)
    if head is None or embedding is None or torch.equal(head.target, embedding.target):
        return
    raise StartupError(
        f"{head.stored} is not equal to {_EMBEDDING}, but config.json ties them; "
        "set tie_word_embeddings to false to use both, or remove the one that is not meant"
    )


def _whole_digest(transfers: Sequence[Transfer], digests: Mapping[str, xxhash.xxh3_128]) -> str:
    whole = xxhash.xxh3_128()
    for stored in sorted((transfer.stored for transfer in transfers), key=attrgetter("name")):
        whole.update(json.dumps([stored.name, stored.dtype, stored.shape]).encode())
        whole.update(digests[stored.name].digest())
    return str(whole.hexdigest())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
