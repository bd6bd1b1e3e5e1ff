"""A dict by block hash, split into shards: one dict of 5 M entries blocks for long as it grows."""

import sys
from dataclasses import dataclass
from typing import Self

_MIN_WIDTH = 16
"""A shard covers this many values of the top bits of a hash, or up to twice as many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTable:
    """A dict in shards, each small enough to grow quickly."""

    shards: list[dict[int, int]]
    shard_of: list[dict[int, int]]
    """Shards by the top bits of a hash."""

    shift: int

    @classmethod
    def empty(cls, shift: int) -> Self:
        """Returns a table that chooses shards by a hash without its low `shift` bits.

        Shard sizes vary by up to a factor of two: shards of equal size would all grow at once.
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
        """Memory of the dicts, without their keys and values."""
        return sum(map(sys.getsizeof, self.shards))
