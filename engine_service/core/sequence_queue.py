"""Sequences sorted by importance."""

from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from engine_service.core.sequence import Sequence

_order = attrgetter("order")


class SequenceQueue:
    """A sorted list of sequences: larger priority first, then earlier arrival.

    Adding and removing take a binary search and a move of pointers. For the few thousand
    sequences that admission allows, this is cheaper than a heap with deletions.
    """

    __slots__ = ("_sequences",)

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterates from first to last; the last may be removed during iteration."""
        return iter(self._sequences)

    @property
    def first(self) -> Sequence:
        """The most important sequence."""
        return self._sequences[0]

    @property
    def last(self) -> Sequence:
        """The least important sequence; of equal priorities, the youngest."""
        return self._sequences[-1]

    def add(self, sequence: Sequence) -> None:
        """Inserts a sequence in order."""
        index = bisect_left(self._sequences, sequence.order, key=_order)
        self._sequences.insert(index, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence.

        Raises:
            ValueError: It is not in the queue.
        """
        index = bisect_left(self._sequences, sequence.order, key=_order)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            raise ValueError(f"sequence {sequence.request_id} is not in the queue")
        del self._sequences[index]
