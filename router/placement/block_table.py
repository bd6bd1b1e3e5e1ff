"""A dict by block hash in many parts, since one of 5 M entries stands still when it grows."""

import sys
from dataclasses import dataclass
from typing import Self

_MIN_WIDTH = 16
"""A shard takes so many values of the top bits, or up to twice as many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTable:
    """A dict in shards, none of which grows for long."""

    shards: list[dict[int, int]]
    shard_of: list[dict[int, int]]
    """By the top bits of a hash."""

    shift: int

    @classmethod
    def empty(cls, shift: int) -> Self:
        """Returns a table whose shards are chosen by a hash without its low `shift` bits.

        Shards have a share of the hashes from 1 to 2: equal ones would all grow at the same time.
        """
        num_tops = 1 << (64 - shift)
        shards: list[dict[int, int]] = []
        shard_of: list[dict[int, int]] = []
        while len(shard_of) < num_tops:
            width = _MIN_WIDTH + len(shards) % _MIN_WIDTH
            shards.append({})
            shard_of += [shards[-1]] * width
        return cls(shards=shards, shard_of=shard_of[:num_tops], shift=shift)

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __contains__(self, block: int) -> bool:
        return block in self.shard_of[block >> self.shift]

    @property
    def num_bytes(self) -> int:
        """Memory of the dicts, without keys and values."""
        return sum(map(sys.getsizeof, self.shards))
