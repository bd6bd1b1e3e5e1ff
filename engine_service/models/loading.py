"""Sets a model's weights: read from safetensors files, or random."""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import xxhash
from tqdm import tqdm

from engine_service.errors import StartupError
from engine_service.layers.ranks import ALONE, Ranks
from engine_service.layers.weight_slot import WeightSlot
from engine_service.models.causal_lm import CausalLM
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.dtypes import STORED
from engine_service.models.index_hash import index_hash
from engine_service.models.model_config import ModelConfig
from engine_service.models.registry import ARCHITECTURES
from engine_service.models.stored_weights import EMBEDDING, HEAD, choose_tensors
from engine_service.models.tensor_file import StoredTensor
from engine_service.models.tensor_part import TensorPart, part_of
from engine_service.models.tensor_reader import Transfer, read_tensors
from engine_service.models.weights_digest import part_sums, whole_digest

logger = logging.getLogger(__name__)

_DUMMY_CHUNK = 1 << 22

# Its own lock is one of multiprocessing too, whose semaphores a killed process would leave behind.
tqdm.set_lock(threading.RLock())


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
    choose_tensors(_shapes(_slots(model)), checkpoint)


def _alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


def load_weights(
    model: CausalLM,
    checkpoint: Checkpoint,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] = _alone,
) -> str:
    """Reads each tensor of a checkpoint, or this rank's part of it, into its place on the device.

    A packed parameter is filled slice by slice; values are converted to the model's dtype. All
    files are checked before the first tensor is read.

    Args:
        model: The model to fill, or this rank's part of it.
        checkpoint: Its files.
        rank: This rank.
        num_ranks: Ranks that hold the model together, all of which load at the same time.
        sum_over_ranks: Called once, when all is read. Takes an int64 tensor on the CPU and
            returns the sum (modulo 2^64) of what all ranks gave, which have the same shape.

    Returns:
        32 hexadecimal digits (xxh3-128) over the names, stored types and shapes of all tensors and
        over their values in the model's dtype. It is the same on all ranks, and for any number of
        ranks.

    Raises:
        StartupError: As of `choose_tensors`; or a tensor is not finite, or not equal to the one
            that it is tied to. Only the ranks that hold the bad values raise the latter two.
    """
    slots = _slots(model)
    tensors = choose_tensors(_shapes(slots), checkpoint)
    transfers = _plan_transfers(slots, tensors)
    num_bytes = sum(transfer.num_bytes for transfer in transfers.values())
    _read_with_progress(list(transfers.values()), num_bytes, is_shown=rank == 0)
    _check_values(transfers.values())
    _fill_columns(slots, transfers)
    if HEAD not in slots:
        _check_tied_head(transfers)
    digest = _digest(slots, transfers, rank, sum_over_ranks)
    _add_constants(slots)
    share = ""
    if num_ranks > 1:
        total = sum(stored.end - stored.begin for stored in tensors.values())
        share = f" rank={rank} num_ranks={num_ranks} total_bytes={total}"
    num_files = len(checkpoint.weights_files)
    logger.info("weights loaded files=%d bytes=%d%s", num_files, num_bytes, share)
    return digest


def _slots(model: CausalLM) -> dict[str, WeightSlot]:
    """Returns the place of each tensor by its name in a checkpoint."""
    return {slot.name: slot for slot in model.weight_slots()}


def _shapes(slots: Mapping[str, WeightSlot]) -> dict[str, tuple[int, ...]]:
    return {name: slot.full_shape for name, slot in slots.items()}


def _slot_of(name: str, slots: Mapping[str, WeightSlot]) -> WeightSlot:
    """Returns a tensor's slot; that of a tied head is the embedding's."""
    return slots[name] if name in slots else slots[EMBEDDING]


def _plan_transfers(
    slots: Mapping[str, WeightSlot], tensors: Mapping[str, StoredTensor]
) -> dict[str, Transfer]:
    """Finds the place of each stored tensor; returns them by its name."""
    transfers = {}
    for name, stored in tensors.items():
        slot = _slot_of(name, slots)
        target = _contiguous(slot.target)
        if name not in slots and EMBEDDING in tensors:
            # Read beside the embedding, to be compared.
            target = torch.empty_like(target)
        transfers[name] = Transfer(stored=stored, part=part_of(slot), target=target)
    return transfers


def _read_with_progress(transfers: Sequence[Transfer], num_bytes: int, *, is_shown: bool) -> None:
    num_done = 0
    next_quarter = 1
    with tqdm(
        total=num_bytes,
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        disable=None if is_shown else True,
    ) as progress:
        for piece_bytes in read_tensors(transfers):
            progress.update(piece_bytes)
            num_done += piece_bytes
            # Without a terminal there is no progress bar; a log line per quarter replaces it.
            if is_shown and progress.disable and num_done * 4 >= num_bytes * next_quarter:
                logger.info("weights loading percent=%d", num_done * 100 // num_bytes)
                next_quarter = num_done * 4 // num_bytes + 1


def _contiguous(place: torch.Tensor) -> torch.Tensor:
    """Returns where to read a tensor: its place, or memory beside it if that has gaps."""
    if place.is_contiguous():
        return place
    return torch.empty_like(place, memory_format=torch.contiguous_format)


@torch.inference_mode()
def _fill_columns(slots: Mapping[str, WeightSlot], transfers: Mapping[str, Transfer]) -> None:
    """Copies what was read beside its place, as the columns of a packed parameter are."""
    for name, transfer in transfers.items():
        slot = slots.get(name)
        if slot is not None and not slot.target.is_contiguous():
            slot.target.copy_(transfer.target)


@torch.inference_mode()
def _add_constants(slots: Mapping[str, WeightSlot]) -> None:
    for slot in slots.values():
        if slot.added:
            slot.target.add_(slot.added)


def _check_values(transfers: Iterable[Transfer]) -> None:
    """Refuses weights that are not finite in the model's dtype.

    NaN propagates through minimum and maximum, which take one pass and no memory. All results are
    fetched at once, so there is only one wait for a GPU.
    """
    # A rank may hold nothing of a tensor that has fewer rows than there are ranks.
    transfers = [transfer for transfer in transfers if transfer.target.numel()]
    extremes = [extreme for transfer in transfers for extreme in transfer.target.aminmax()]
    pairs = torch.stack(extremes).view(-1, 2).tolist() if extremes else []
    for transfer, values in zip(transfers, pairs, strict=True):
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


def _check_tied_head(transfers: Mapping[str, Transfer]) -> None:
    """Refuses a tied model whose stored head differs from its embedding."""
    head, embedding = transfers.get(HEAD), transfers.get(EMBEDDING)
    if head is None or embedding is None or torch.equal(head.target, embedding.target):
        return
    raise StartupError(
        f"{head.stored} differs from {EMBEDDING}, but config.json ties them; "
        "set tie_word_embeddings to false to use both, or remove the wrong one"
    )


def _digest(
    slots: Mapping[str, WeightSlot],
    transfers: Mapping[str, Transfer],
    rank: int,
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
) -> str:
    """Returns the digest of the whole model, of which this rank read these parts."""
    names = sorted(transfers)
    is_counted = [_is_counted(_slot_of(name, slots), rank) for name in names]
    parts = part_sums(
        [
            (transfers[name].target, transfers[name].part)
            for name, counted in zip(names, is_counted, strict=True)
            if counted
        ]
    )
    sums = parts.new_zeros(len(names), parts.shape[1])
    sums[torch.tensor(is_counted, dtype=torch.bool)] = parts
    return whole_digest(((name, transfers[name].stored) for name in names), sum_over_ranks(sums))


def _is_counted(slot: WeightSlot, rank: int) -> bool:
    """Whether this rank accounts for what it holds; of several with the same, one does."""
    return rank == 0 if slot.shard is None else not slot.shard.is_replica


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def fill_randomly(model: CausalLM, seed: int, std: float) -> None:
    """Sets norm weights to 1, biases to 0 and all others to random values of mean 0.

    A value depends only on seed, tensor name and index in the whole tensor, so it is the same on
    every device, and for any number of ranks.

    Args:
        model: The model to fill.
        seed: Chooses the values.
        std: Their standard deviation.
    """
    for name, slot in _slots(model).items():
        target = slot.target
        if target.dim() == 1:
            target.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        key = xxhash.xxh3_64_intdigest(name.encode(), seed=seed) - (1 << 63)
        part = part_of(slot)
        values = target.contiguous()
        for chunk, indices in _chunks(values, part):
            chunk.copy_(_noise(key, indices).mul_(std))
        if values is not target:
            target.copy_(values)


def _chunks(values: torch.Tensor, part: TensorPart) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields views of rows of a part, and the indices of their entries in the whole tensor."""
    rows = values.view(len(part.rows), len(part.columns))
    columns = torch.arange(part.columns.start, part.columns.stop, device=values.device)
    step = max(1, _DUMMY_CHUNK // max(1, len(columns)))
    for begin in range(0, len(rows), step):
        chunk = rows[begin : begin + step]
        first = part.rows.start + begin
        numbers = torch.arange(first, first + len(chunk), device=values.device)
        yield chunk, numbers.unsqueeze(1) * part.num_columns + columns


def _noise(key: int, indices: torch.Tensor) -> torch.Tensor:
    """Returns near-normal numbers, each a function of an index.

    A 64-bit hash of the index is split into four 16-bit integers. Their sum is nearly normal and
    exact in float32.

    Returns:
        Of the indices' shape, float32 of mean 0 and standard deviation 1.
    """
    x = index_hash(indices, key)
    total = (x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + ((x >> 48) & 0xFFFF)
    mean, std = 2 * 65535.0, ((65536.0**2 - 1) / 3) ** 0.5
    # Division by a number differs between devices; multiplication does not.
    return total.float().sub_(mean).mul_(1 / std)
