"""The shared prefixes of a step's decoding rows, as the kernel takes them."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from engine_service.core.types import MAX_PREFIX_GROUPS, StepPlan
from engine_service.worker.rows import Rows
from kernels.shared_prefix import MAX_MEMBERS, SharedPrefixes

_Integers = npt.NDArray[np.int64]


def max_tiles(num_rows: int) -> int:
    """Returns how many tiles any groups of so many rows take."""
    return -(-num_rows // MAX_MEMBERS) + MAX_PREFIX_GROUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTiles:
    """Which rows share which prefix. As `SharedPrefixes`, on the host."""

    tiles: _Integers
    """[num_tiles, 3]"""
    members: _Integers
    prefix_lens: _Integers
    """[num_rows]"""

    @classmethod
    def of(cls, plan: StepPlan, rows: Rows, num_slots: int) -> Self | None:
        """Returns the groups of which at least two members decode in this step, or None.

        Args:
            plan: The plan.
            rows: Its rows.
            num_slots: Slots that there are.
        """
        packed = np.asarray(plan.shared_prefixes or (), dtype=np.int64)
        row_of_slot = np.full(num_slots, -1)
        row_of_slot[rows.slots[: rows.num_decodes]] = np.arange(rows.num_decodes)
        prefix_lens = np.zeros(rows.num_rows, dtype=np.int64)
        tiles: list[tuple[int, int, int]] = []
        members: list[_Integers] = []
        num_members = start = 0
        while start < len(packed):
            size, prefix_len = packed[start : start + 2].tolist()
            of_group = row_of_slot[packed[start + 2 : start + 2 + size]]
            of_group = of_group[of_group >= 0]
            start += 2 + size
            if len(of_group) < 2:
                continue
            prefix_lens[of_group] = prefix_len
            members.append(of_group)
            for first in range(0, len(of_group), MAX_MEMBERS):
                count = min(MAX_MEMBERS, len(of_group) - first)
                tiles.append((num_members + first, count, prefix_len))
            num_members += len(of_group)
        if not tiles:
            return None
        return cls(
            tiles=np.array(tiles, dtype=np.int64),
            members=np.concatenate(members),
            prefix_lens=prefix_lens,
        )

    def packed(self, num_rows: int) -> _Integers:
        """Returns what `unpack` reads, with unused tiles and rows of padding."""
        packed = np.zeros(num_packed(num_rows), dtype=np.int64)
        tiles, members, prefix_lens = np.split(packed, _places(num_rows))
        tiles[: self.tiles.size] = self.tiles.ravel()
        members[: len(self.members)] = self.members
        prefix_lens[: len(self.prefix_lens)] = self.prefix_lens
        return packed


def num_packed(num_rows: int) -> int:
    """Returns how many integers `PrefixTiles.packed` gives."""
    return 3 * max_tiles(num_rows) + 2 * num_rows


def unpack(packed: torch.Tensor, num_rows: int) -> SharedPrefixes:
    """Returns what the kernel takes, from [num_packed(num_rows)] int64 on the device."""
    tiles, members, prefix_lens = packed.int().tensor_split(_places(num_rows))
    return SharedPrefixes(tiles=tiles.view(-1, 3), members=members, prefix_lens=prefix_lens)


def _places(num_rows: int) -> list[int]:
    end_of_tiles = 3 * max_tiles(num_rows)
    return [end_of_tiles, end_of_tiles + num_rows]
