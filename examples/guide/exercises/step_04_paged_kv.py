"""Exercise 4: one prompt, several answers.

Somebody wants two answers to one question. The prompt is computed once; then the sequence is
forked, and both go on by themselves. Their full blocks will never be written again, so both tables
may name the same ones. The last block, if it is not full, is written next, and must be copied.
"""

from examples.guide.step_04_paged_kv import PagedCache, Sequence


class SharedCache(PagedCache):
    """A cache whose blocks may stand in the tables of several sequences."""

    def fork(self, sequence: Sequence) -> Sequence:
        """Returns a copy of a sequence that has its own tokens, count and table.

        Both share the blocks that are full: those of whose places each has a computed token. If
        the last one is not full, the copy gets a block of its own with the same keys and values.
        """
        raise NotImplementedError

    def release(self, sequence: Sequence) -> None:
        """As before, but a block is free only when no sequence has it any more."""
        raise NotImplementedError
