"""Models of nothing but slots, divided among ranks, each of which is a thread."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import safetensors.torch
import torch

from engine_service.layers.weight_slot import Shard, WeightSlot
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.loading import load_weights

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NUM_RANKS = [1, 2, 3, 4]

DIMS = {
    "rows": 0,
    "columns": 1,
    "cube": 1,
    "bias": 0,
    "few": 0,
    "heads": 0,
    "norm": None,
    "whole": None,
}
"""The dimension along which each tensor is divided."""


def make_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "rows": (13, 7),
        "columns": (9, 23),
        "cube": (5, 11, 3),
        "bias": (13,),
        # With four ranks, the first has none of its rows.
        "few": (3, 5),
        "heads": (6, 5),
        "norm": (7,),
        "whole": (3, 4),
    }
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def write(tmp_path, tensors, dtype=torch.float32):
    """Writes tensors as a new checkpoint."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    converted = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(converted, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return resolve_checkpoint(str(folder))


def bounds(name, full_size, rank, num_ranks):
    """Returns a rank's range and whether another rank accounts for it."""
    if name == "heads":
        # Two heads, each of which two of four ranks share.
        num_parts = 2 if num_ranks == 4 else num_ranks
        part, replica = divmod(rank * num_parts, num_ranks)
        return full_size * part // num_parts, full_size * (part + 1) // num_parts, replica > 0
    return full_size * rank // num_ranks, full_size * (rank + 1) // num_ranks, False


@dataclass
class Rank:
    """A model of nothing but slots, as one rank has it."""

    slots: list[WeightSlot]

    def weight_slots(self):
        return iter(self.slots)

    def __getitem__(self, name):
        return next(slot for slot in self.slots if slot.name == name)


def part_of(name, tensor, rank, num_ranks):
    if DIMS[name] is None:
        return tensor
    begin, end, _ = bounds(name, tensor.shape[DIMS[name]], rank, num_ranks)
    return tensor.narrow(DIMS[name], begin, end - begin)


def make_rank(tensors, rank, num_ranks, dtype=torch.float32):
    slots = []
    for name, tensor in tensors.items():
        shard = None
        if (dim := DIMS[name]) is not None:
            begin, _, is_replica = bounds(name, tensor.shape[dim], rank, num_ranks)
            shard = Shard(dim=dim, begin=begin, full_size=tensor.shape[dim], is_replica=is_replica)
        parameter = torch.full(part_of(name, tensor, rank, num_ranks).shape, torch.nan, dtype=dtype)
        slots.append(WeightSlot(name=name, parameter=parameter, shard=shard))
    return Rank(slots)


def load_all(ranks, checkpoint):
    """Loads all ranks at once; returns their digests."""
    gathered = []
    barrier = threading.Barrier(len(ranks), timeout=60)

    def sum_over_ranks(sums):
        gathered.append(sums)
        barrier.wait()
        return torch.stack(gathered).sum(0)

    def load(index):
        try:
            return load_weights(
                ranks[index],
                checkpoint,
                rank=index,
                num_ranks=len(ranks),
                sum_over_ranks=sum_over_ranks,
            )
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(load, range(len(ranks))))


def digest_of(checkpoint, tensors, num_ranks=1, dtype=torch.float32):
    ranks = [make_rank(tensors, rank, num_ranks, dtype) for rank in range(num_ranks)]
    (digest,) = set(load_all(ranks, checkpoint))
    return digest
