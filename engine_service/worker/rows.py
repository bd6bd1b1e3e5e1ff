"""The rows of a step: on the host, as a plan has them, and on the device."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from engine_service.core.types import StepPlan

_Integers = npt.NDArray[np.int64]

PADDING = -1
"""Number of computed tokens in a row that belongs to no sequence."""
_MIN_SORTED_ROWS = 64
"""Measured on an H200, 8 key-value heads: with 66, the order made no difference yet, with 118 it
did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a plan on the host, rows of one token first.

    Many of these are in the order of their lengths, the longest first: a program of attention that
    starts last and reads a long sequence would leave the others without work.
    """

    slots: _Integers
    num_computed: _Integers
    query_start_loc: _Integers
    sampled_rows: _Integers
    """The rows that yield a token, in the order of the plan."""
    place: _Integers
    """The row here of each row of the plan."""
    num_decodes: int
    """Rows of one token."""

    @property
    def num_rows(self) -> int:
        """Sequences of the step."""
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return int(self.query_start_loc[-1])

    @property
    def is_decode(self) -> bool:
        """Whether every row computes and yields one token."""
        return self.num_decodes == len(self.sampled_rows) == len(self.slots)

    @property
    def is_in_order(self) -> bool:
        """Whether the rows are in the plan's order."""
        return bool((self.place[:-1] < self.place[1:]).all())

    @classmethod
    def none(cls) -> Self:
        """Returns the rows of a step of padding only."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(
            slots=nothing,
            num_computed=nothing,
            query_start_loc=np.zeros(1, dtype=np.int64),
            sampled_rows=nothing,
            place=nothing,
            num_decodes=0,
        )

    @classmethod
    def of(cls, plan: StepPlan) -> Self:
        """Sorts the rows of a plan."""
        scheduled = np.asarray(plan.num_scheduled_tokens, dtype=np.int64)
        num_computed = np.asarray(plan.num_computed_tokens, dtype=np.int64)
        is_decode = scheduled == 1
        num_decodes = int(is_decode.sum())
        keys = ~is_decode
        if num_decodes >= _MIN_SORTED_ROWS:
            keys = np.where(is_decode, -num_computed, 1)
        order = np.argsort(keys, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return cls(
            slots=np.asarray(plan.slots, dtype=np.int64)[order],
            num_computed=num_computed[order],
            query_start_loc=np.concatenate(
                (np.zeros(1, dtype=np.int64), scheduled[order].cumsum())
            ),
            sampled_rows=place[np.flatnonzero(np.asarray(plan.is_sampled))],
            place=place,
            num_decodes=num_decodes,
        )

    def packed(self, num_rows: int, num_tokens: int) -> _Integers:
        """Returns `DeviceRows.packed` without prefixes, with padding up to these sizes.

        All padding tokens belong to the last row. Without padding rows there must be no padding
        tokens.
        """
        count = self.num_rows
        packed = np.zeros(6 * num_rows + 2, dtype=np.int64)
        slots, num_computed, is_decode, is_sampled = packed[: 4 * num_rows].reshape(4, num_rows)
        query_start_loc, prefill_start_loc = packed[4 * num_rows :].reshape(2, num_rows + 1)
        slots[:count] = self.slots
        num_computed[:count] = self.num_computed
        num_computed[count:] = PADDING
        is_decode[: self.num_decodes] = 1
        is_sampled[self.sampled_rows] = 1
        query_start_loc[: count + 1] = self.query_start_loc
        query_start_loc[count + 1 :] = self.num_tokens
        prefill_start_loc[:] = query_start_loc.clip(min=self.num_decodes)
        query_start_loc[-1] = num_tokens
        return packed


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRows:
    """The rows of a step on the device."""

    packed: torch.Tensor
    """[at least 6 * num_rows + 2] int64: the properties below, one after the other."""
    num_rows: int
    """Rows, including padding."""
    sampled_rows: torch.Tensor | None
    """[num_sampled] int64, in the order of the plan. None: all rows, in order."""

    @property
    def slots(self) -> torch.Tensor:
        """[num_rows] int64."""
        return self.packed[: self.num_rows]

    @property
    def num_computed(self) -> torch.Tensor:
        """[num_rows] int64; `PADDING` in rows that belong to no sequence."""
        return self.packed[self.num_rows : 2 * self.num_rows]

    @property
    def is_decode(self) -> torch.Tensor:
        """[num_rows] int64: 1 in rows of one token."""
        return self.packed[2 * self.num_rows : 3 * self.num_rows]

    @property
    def is_sampled(self) -> torch.Tensor:
        """[num_rows] int64: 1 in rows that yield a token."""
        return self.packed[3 * self.num_rows : 4 * self.num_rows]

    @property
    def query_start_loc(self) -> torch.Tensor:
        """[num_rows + 1] int64: where each row's tokens begin."""
        return self.packed[4 * self.num_rows : 5 * self.num_rows + 1]

    @property
    def prefill_start_loc(self) -> torch.Tensor:
        """[num_rows + 1] int64: the same, but rows of one token and padding have no tokens."""
        return self.packed[5 * self.num_rows + 1 : 6 * self.num_rows + 2]

    @property
    def packed_prefixes(self) -> torch.Tensor | None:
        """What `prefix_tiles.unpack` takes; None if the step reads each prefix for each row."""
        rest = self.packed[6 * self.num_rows + 2 :]
        return rest if rest.numel() else None
