"""The place of a stored tensor in a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of a stored tensor that one rank holds, along one dimension."""

    dim: int
    begin: int
    """The first entry of the part; its size is that of its place in the model."""
    full_size: int
    """Entries of the whole stored tensor along `dim`."""
    is_replica: bool = False
    """Whether another rank holds the same part, and accounts for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSlot:
    """The place of one stored tensor: a parameter, or a slice of one that holds several.

    The slice has `size` entries from `offset` along dimension `dim`, and is full along the others.
    """

    name: str
    """The tensor's name in a checkpoint."""
    parameter: torch.Tensor
    dim: int = 0
    offset: int = 0
    size: int | None = None
    """None is the whole dimension."""
    shard: Shard | None = None
    """The part of the stored tensor that belongs here; None is all of it."""

    @property
    def target(self) -> torch.Tensor:
        """The view of the parameter that receives the tensor; has the tensor's shape."""
        if self.size is None:
            return self.parameter
        return self.parameter.narrow(self.dim, self.offset, self.size)


def merged_slots(
    names: Iterable[str],
    parameter: torch.Tensor,
    sizes: Sequence[int],
    shards: Sequence[Shard | None] | None = None,
) -> Iterator[WeightSlot]:
    """Yields the slots of tensors that are stacked by rows in a parameter.

    Args:
        names: Names of the tensors, from the top.
        parameter: [sum(sizes), ...].
        sizes: Rows of each.
        shards: The part of each that these rows are; None if all are whole.
    """
    offset = 0
    parts = [None] * len(sizes) if shards is None else shards
    for name, size, shard in zip(names, sizes, parts, strict=True):
        yield WeightSlot(name=name, parameter=parameter, offset=offset, size=size, shard=shard)
        offset += size
    assert offset == parameter.shape[0], f"{names} do not fill {list(parameter.shape)}"
