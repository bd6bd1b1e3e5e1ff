"""The place of a stored tensor in a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of a stored tensor that one rank holds: the target's entries from `begin`."""

    dim: int
    """The divided dimension, 0 or 1."""
    begin: int
    """Index of the part's first entry in the stored tensor."""
    full_size: int
    """Entries of the stored tensor along `dim`."""
    is_replica: bool = False
    """Whether another rank holds the same part and accounts for it.

    So it is with key-value heads that ranks share.
    """


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
    """The part of the tensor that belongs here; None is all of it, on every rank."""
    added: float = 0.0
    """What is added to the stored values: some norms store how far their weights are from 1."""

    @property
    def target(self) -> torch.Tensor:
        """The view of the parameter that receives the tensor; has the shape of its part."""
        if self.size is None:
            return self.parameter
        return self.parameter.narrow(self.dim, self.offset, self.size)

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        shape = list(self.target.shape)
        if self.shard is not None:
            shape[self.shard.dim] = self.shard.full_size
        return tuple(shape)


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
        sizes: Rows of each in the parameter.
        shards: The part of each that belongs there; None if all are whole.
    """
    if shards is None:
        shards = [None] * len(sizes)
    offset = 0
    for name, size, shard in zip(names, sizes, shards, strict=True):
        yield WeightSlot(name=name, parameter=parameter, offset=offset, size=size, shard=shard)
        offset += size
    assert offset == parameter.shape[0], f"{names} do not fill {list(parameter.shape)}"
