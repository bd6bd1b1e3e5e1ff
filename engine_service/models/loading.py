"""Sets a model's weights: read from safetensors files, or random."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
import xxhash
from tqdm import tqdm

from engine_service.errors import StartupError
from engine_service.layers.ranks import ALONE, Ranks
from engine_service.models.causal_lm import CausalLM
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.dtypes import STORED
from engine_service.models.model_config import ModelConfig
from engine_service.models.registry import ARCHITECTURES
from engine_service.models.stored_weights import EMBEDDING, HEAD, choose_tensors
from engine_service.models.tensor_file import StoredTensor
from engine_service.models.tensor_reader import Transfer, read_tensors

logger = logging.getLogger(__name__)

_DUMMY_CHUNK = 1 << 22


def build_model(
    config: ModelConfig,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> CausalLM:
    """Builds one rank's part of the configured model; its weights are not yet set."""
    with device:
        return ARCHITECTURES[config.architecture].build(config, max_model_len, dtype, ranks)


def check_weights(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Compares the headers of the weights files with the model that the configuration describes.

    Allocates nothing, whatever sizes config.json claims.

    Raises:
        StartupError: As of `choose_tensors`.
    """
    # On torch's device "meta" a tensor has only a shape and a dtype.
    model = build_model(config, 1, torch.float32, torch.device("meta"))
    choose_tensors(_shapes(_targets(model)), checkpoint)


def load_weights(model: CausalLM, checkpoint: Checkpoint) -> str:
    """Reads each tensor of a checkpoint once into its place on the model's device.

    A packed parameter is filled slice by slice; values are converted to the model's dtype. All
    files are checked before the first tensor is read.

    Returns:
        32 hexadecimal digits (xxh3-128) over the names, types, shapes and bytes of what was read.

    Raises:
        StartupError: As of `choose_tensors`; or a tensor is not finite, or not equal to the one
            that it is tied to.
    """
    targets = _targets(model)
    tensors = choose_tensors(_shapes(targets), checkpoint)
    transfers = _plan_transfers(targets, tensors)
    total = sum(transfer.stored.end - transfer.stored.begin for transfer in transfers)
    digests = {name: xxhash.xxh3_128() for name in tensors}
    num_done = 0
    next_quarter = 1
    with tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None
    ) as progress:
        for piece in read_tensors(transfers):
            digests[piece.name].update(piece.digest)
            progress.update(piece.num_bytes)
            num_done += piece.num_bytes
            # Without a terminal there is no progress bar; a log line per quarter replaces it.
            if progress.disable and num_done * 4 >= total * next_quarter:
                logger.info("weights loading percent=%d", num_done * 100 // total)
                next_quarter = num_done * 4 // total + 1
    _check_values(transfers)
    _fill_columns(targets, transfers)
    if HEAD not in targets:
        _check_tied_head(transfers)
    logger.info("weights loaded files=%d bytes=%d", len(checkpoint.weights_files), total)
    return _whole_digest(transfers, digests)


def _targets(model: CausalLM) -> dict[str, torch.Tensor]:
    """Returns the place of each tensor by its name in a checkpoint."""
    return {slot.name: slot.target for slot in model.weight_slots()}


def _shapes(targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: target.shape for name, target in targets.items()}


def _plan_transfers(
    targets: Mapping[str, torch.Tensor], tensors: Mapping[str, StoredTensor]
) -> list[Transfer]:
    """Finds the place of each stored tensor."""
    places = dict(targets)
    if HEAD not in targets and HEAD in tensors:
        # Read into the embedding's place, or beside it to be compared.
        embedding = targets[EMBEDDING]
        places[HEAD] = torch.empty_like(embedding) if EMBEDDING in tensors else embedding
    return [
        Transfer(stored=tensor, target=_contiguous(places[name]))
        for name, tensor in tensors.items()
    ]


def _contiguous(place: torch.Tensor) -> torch.Tensor:
    """Returns where to read a tensor: its place, or memory beside it if that has gaps."""
    if place.is_contiguous():
        return place
    return torch.empty_like(place, memory_format=torch.contiguous_format)


@torch.inference_mode()
def _fill_columns(targets: Mapping[str, torch.Tensor], transfers: Sequence[Transfer]) -> None:
    """Copies what was read beside its place, as the columns of a packed parameter are."""
    for transfer in transfers:
        place = targets.get(transfer.stored.name, transfer.target)
        if place is not transfer.target:
            place.copy_(transfer.target)


def _check_values(transfers: Sequence[Transfer]) -> None:
    """Refuses weights that are not finite in the model's dtype.

    NaN propagates through minimum and maximum, which take one pass and no memory. All results are
    fetched at once, so there is only one wait for a GPU.
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
            if STORED[stored.dtype].torch_dtype != dtype:
                limit = torch.finfo(dtype).max
                found += f", or values above {limit:.3g}, the maximum of {_name(dtype)}"
        raise StartupError(f"{stored}, stored as {stored.dtype}, contains {found}")


def _check_tied_head(transfers: Sequence[Transfer]) -> None:
    """Refuses a tied model whose stored head differs from its embedding."""
    by_name = {transfer.stored.name: transfer for transfer in transfers}
    head, embedding = by_name.get(HEAD), by_name.get(EMBEDDING)
    if head is None or embedding is None or torch.equal(head.target, embedding.target):
        return
    raise StartupError(
        f"{head.stored} differs from {EMBEDDING}, but config.json ties them; "
        "set tie_word_embeddings to false to use both, or remove the wrong one"
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
def fill_randomly(model: CausalLM, seed: int, std: float) -> None:
    """Sets norm weights to 1, biases to 0 and all others to random values of mean 0.

    A value depends only on seed, tensor name and index, so it is the same on every device.

    Args:
        model: The model to fill.
        seed: Chooses the values.
        std: Their standard deviation.
    """
    for name, target in _targets(model).items():
        if target.dim() == 1:
            target.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        key = xxhash.xxh3_64_intdigest(name.encode(), seed=seed) - (1 << 63)
        values = target.contiguous()
        flat = values.view(-1)
        for begin in range(0, flat.numel(), _DUMMY_CHUNK):
            chunk = flat[begin : begin + _DUMMY_CHUNK]
            chunk.copy_(_noise(key, begin, chunk.numel(), chunk.device).mul_(std))
        if values is not target:
            target.copy_(values)


def _noise(key: int, begin: int, count: int, device: torch.device) -> torch.Tensor:
    """Returns `count` values, from index `begin`, of a sequence of near-normal numbers.

    A 64-bit hash of the index (the finalizer of SplitMix64) is split into four 16-bit integers.
    Their sum is nearly normal and exact in float32.

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
    # Division by a number differs between devices; multiplication does not.
    return total.float().sub_(mean).mul_(1 / std)
