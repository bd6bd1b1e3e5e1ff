"""Which running sequences begin with the same blocks."""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from engine_service.core.recent_prompts import num_common_items
from engine_service.core.types import MAX_PREFIX_GROUPS

# What makes another kernel in each layer worth it, measured on an H200. Shorter prefixes are in the
# L2 cache when they are read again.
_MIN_PREFIX_TOKENS = 512
_MIN_SAVED_TOKENS = 16384


class PrefixGroup(NamedTuple):
    """Sequences, by their places in the order of their blocks, and how many blocks they share."""

    members: list[int]
    num_blocks: int

    @property
    def num_saved_blocks(self) -> int:
        """Blocks that need not be read if the shared ones are read once."""
        return (len(self.members) - 1) * self.num_blocks


class PrefixGroups:
    """Keeps running sequences in the order of their blocks, and finds those that share the first.

    A sequence is compared by the blocks that it had when it was added: those that it shares with
    others are among them. Sequences that share blocks are neighbours in that order. Blocks are kept
    as bytes, the most significant first, which are in the same order and compared much faster.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._slots: list[int] = []
        self._tables: list[bytes] = []
        """In rising order."""
        self._num_common: list[int] = []
        """Leading blocks that each shares with the one before it; 0 for the first."""
        self._found: array[int] | None = None
        self._is_current = True

    def add(self, slot: int, block_table: Sequence[int]) -> None:
        """Adds a sequence, which keeps these blocks until it is removed."""
        table = _to_bytes(block_table)
        place = bisect_left(self._tables, table)
        self._slots.insert(place, slot)
        self._tables.insert(place, table)
        self._num_common.insert(place, 0)
        for second in (place, place + 1):
            if 0 < second < len(self._tables):
                self._num_common[second] = num_common_items(
                    self._tables[second - 1], self._tables[second], array("i").itemsize
                )
        self._is_current = False

    def remove(self, slot: int) -> None:
        """Removes a sequence."""
        place = self._slots.index(slot)
        del self._slots[place], self._tables[place]
        num_common = self._num_common.pop(place)
        if place < len(self._slots):
            # Its neighbours share what both share with it.
            self._num_common[place] = min(num_common, self._num_common[place])
        self._is_current = False

    def find(self) -> "array[int] | None":
        """Returns the groups that share most, as `StepPlan.shared_prefixes` has them.

        None if too little is shared to be worth it.
        """
        if not self._is_current:
            self._is_current = True
            min_blocks = -(-_MIN_PREFIX_TOKENS // self._block_size)
            self._found = self._pack(
                best_groups([common if common >= min_blocks else 0 for common in self._num_common])
            )
        return self._found

    def _pack(self, groups: list[PrefixGroup]) -> "array[int] | None":
        groups = sorted(groups, key=lambda group: -group.num_saved_blocks)[:MAX_PREFIX_GROUPS]
        num_saved_blocks = sum(group.num_saved_blocks for group in groups)
        if num_saved_blocks * self._block_size < _MIN_SAVED_TOKENS:
            return None
        packed = array("i")
        for group in groups:
            slots = [self._slots[place] for place in group.members]
            packed.extend((len(slots), group.num_blocks * self._block_size, *slots))
        return packed


def _to_bytes(block_table: Sequence[int]) -> bytes:
    blocks = array("i", block_table)
    if sys.byteorder == "little":
        blocks.byteswap()
    return blocks.tobytes()


def best_groups(num_common: Sequence[int]) -> list[PrefixGroup]:
    """Groups sequences so that many reads of blocks are saved.

    Those that share a number of blocks are neighbours, and such ranges are nested. From the inside
    out, a range becomes one group, or keeps the groups within it and makes one of the rest,
    whichever saves more. Source of the order: enumeration of the intervals of an array of longest
    common prefixes (Abouelhoda, Kurtz and Ohlebusch, 2004).

    Args:
        num_common: Leading blocks that each sequence shares with the one before it.

    Returns:
        Groups of two or more, which share at least a block. A sequence is in one at most.
    """
    ranges = [_Range(0, 0)]
    end = 1
    for common, equal in groupby([*num_common[1:], 0]):
        start, rest, groups = end - 1, [end - 1], list[PrefixGroup]()
        while ranges[-1].num_blocks > common:
            inner = ranges.pop()
            inner.take(rest, groups)
            inner.group(end)
            start, rest, groups = inner.start, inner.rest, inner.groups
        if ranges[-1].num_blocks < common:
            ranges.append(_Range(start, common))
        ranges[-1].take(rest, groups)
        # Each of the others is a member more.
        num_others = len(list(equal)) - 1
        ranges[-1].rest.extend(range(end, end + num_others))
        end += 1 + num_others
    return ranges[0].groups


class _Range:
    """Neighbours that share blocks: the groups within them, and the rest."""

    __slots__ = ("groups", "num_blocks", "rest", "start")

    def __init__(self, start: int, num_blocks: int) -> None:
        self.start = start
        self.num_blocks = num_blocks
        self.rest: list[int] = []
        self.groups: list[PrefixGroup] = []

    def take(self, rest: list[int], groups: list[PrefixGroup]) -> None:
        """Adds those of a range within it."""
        self.rest += rest
        self.groups += groups

    def group(self, end: int) -> None:
        """Groups all of it, up to the end, or the rest."""
        if len(self.rest) > 1:
            self.groups.append(PrefixGroup(self.rest, self.num_blocks))
            self.rest = []
        num_saved_blocks = (end - self.start - 1) * self.num_blocks
        if num_saved_blocks >= sum(group.num_saved_blocks for group in self.groups):
            self.groups = [PrefixGroup([*range(self.start, end)], self.num_blocks)]
            self.rest = []
