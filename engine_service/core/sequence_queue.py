"""Sequences in the order of their importance."""

from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from engine_service.core.sequence import Sequence

_order = attrgetter("order")


class SequenceQueue:
    """A sorted list of sequences: larger priority first, then earlier arrival.

    Adding and removing take a binary search and a move of pointers, which at the few thousand
    sequences that admission lets in is below the cost of a heap with deletions.
    """

    __slots__ = ("_sequences",)

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Goes from the first to the last; the last may be removed on the way."""
        return iter(self._sequences)

    @property
    def first(self) -> Sequence:
        """The most important sequence."""
        return self._sequences[0]

    @property
    def last(self) -> Sequence:
        """The least important sequence, and of equal ones the youngest."""
        return self._sequences[-1]

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence in its place."""
        index = bisect_left(self._sequences, sequence.order, key=_order)
        self._sequences.insert(index, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out.

        Raises:
            ValueError: It is not in the queue.
        """
        index = bisect_left(self._sequences, sequence.order, key=_order)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            raise ValueError(f"sequence {sequence.request_id} is not in the queue")
        del self._sequences[index]
