"""Where a stored tensor belongs in a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSlot:
    """The place of one stored tensor: a parameter, or its share of one that holds several.

    The share is `size` entries from `offset` along dimension `dim`, whole along the others.
    """

    name: str
    """As a checkpoint names the tensor."""
    parameter: torch.Tensor
    dim: int = 0
    offset: int = 0
    size: int | None = None
    """None is all of it."""

    @property
    def target(self) -> torch.Tensor:
        """The view of the parameter that the tensor is written to, of the tensor's shape."""
        if self.size is None:
            return self.parameter
        return self.parameter.narrow(self.dim, self.offset, self.size)


def merged_slots(
    names: Iterable[str], parameter: torch.Tensor, sizes: Sequence[int]
) -> Iterator[WeightSlot]:
    """Yields the slots of tensors that lie one below the other in a parameter.

    Args:
        names: Of the tensors, from the top.
        parameter: [sum(sizes), ...].
        sizes: Rows of each.
    """
    offset = 0
    for name, size in zip(names, sizes, strict=True):
        yield WeightSlot(name=name, parameter=parameter, offset=offset, size=size)
        offset += size
    assert offset == parameter.shape[0], f"{names} do not fill {list(parameter.shape)}"
