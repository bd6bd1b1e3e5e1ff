"""Solution of exercise 4."""

from collections import Counter

from examples.guide.step_01_forward import Model
from examples.guide.step_04_paged_kv import PagedCache, Sequence


class SharedCache(PagedCache):
    """A cache whose blocks may stand in the tables of several sequences."""

    def __init__(self, model: Model, num_blocks: int, block_size: int = 16) -> None:
        super().__init__(model, num_blocks, block_size)
        self.num_owners: Counter[int] = Counter()

    def take(self) -> int:
        """Takes a free block for one owner."""
        block = super().take()
        self.num_owners[block] = 1
        return block

    def fork(self, sequence: Sequence) -> Sequence:
        """Returns a copy of a sequence that has its own tokens, count and table."""
        num_full = sequence.num_computed // self.block_size
        shared = sequence.block_table[:num_full]
        self.num_owners.update(shared)
        copy = Sequence([*sequence.token_ids], sequence.num_computed, shared)
        if sequence.num_computed % self.block_size:
            self.grow(copy, sequence.num_computed)
            size = self.block_size
            old, new = (
                table[num_full] * size for table in (sequence.block_table, copy.block_table)
            )
            self.memory[:, :, new : new + size] = self.memory[:, :, old : old + size]
        return copy

    def release(self, sequence: Sequence) -> None:
        """As before, but a block is free only when no sequence has it any more."""
        self.num_owners.subtract(sequence.block_table)
        sequence.block_table = [
            block for block in sequence.block_table if not self.num_owners[block]
        ]
        super().release(sequence)
