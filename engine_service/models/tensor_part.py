"""The part of a stored tensor that a slot receives."""

import math
from dataclasses import dataclass

from engine_service.layers.weight_slot import WeightSlot


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """A rectangle of a tensor that is seen as a matrix.

    The matrix has the tensor's first dimension as rows and the product of the others as columns,
    so its entries have the order of the tensor's. A part of the first dimension is a range of rows,
    one of the second dimension a range of columns.
    """

    num_columns: int
    """Columns of the whole matrix."""
    rows: range
    """Its rows in the whole matrix."""
    columns: range
    """Its columns in the whole matrix."""


def part_of(slot: WeightSlot) -> TensorPart:
    """Returns the part of the stored tensor that belongs into a slot."""
    # A scalar is a matrix of one entry.
    shape = slot.full_shape or (1,)
    num_columns = math.prod(shape[1:])
    rows, columns = range(shape[0]), range(num_columns)
    if (shard := slot.shard) is not None:
        begin, end = shard.begin, shard.begin + slot.target.shape[shard.dim]
        assert shard.dim in (0, 1), f"{slot.name} is divided along dimension {shard.dim}"
        assert 0 <= begin <= end <= shard.full_size, f"{slot.name}: {shard} ends at {end}"
        if shard.dim == 0:
            rows = range(begin, end)
        else:
            size = math.prod(shape[2:])
            columns = range(begin * size, end * size)
    return TensorPart(num_columns=num_columns, rows=rows, columns=columns)
