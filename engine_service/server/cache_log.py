"""Numbered changes of the prefix cache, for watchers."""

import asyncio
import secrets
from array import array
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from engine_service.core.types import CacheDelta
from engine_service.errors import RequestError, SlowReader
from protos.wire.limits import MAX_BLOCK_HASHES

_DELTA_COST = 32
"""Overhead of a delta in the history, counted in hashes and added to its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPart:
    """Some of the hashes of blocks held after change `sequence_number`."""

    sequence_number: int
    hashes: "array[int]"
    number: int
    """Its position in the snapshot, counted from 1."""
    is_first: bool
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedDelta:
    """Change `sequence_number`."""

    sequence_number: int
    delta: CacheDelta


@dataclass(slots=True)
class _End:
    """The error that ends all watches of one generation, once it is set."""

    error: RequestError | None = None


class CacheLog:
    """The hashes of the cached blocks, and a history of the newest changes.

    Watchers have no queues: each reads the shared history at its own pace and is cut off when
    the next change that it needs has been dropped.

    Attributes:
        epoch: Identifies this start of the engine; never 0.
        sequence_number: Number of the newest change; 0 before any.
    """

    def __init__(
        self, max_history_hashes: int, max_hashes_per_message: int = MAX_BLOCK_HASHES
    ) -> None:
        self.epoch = secrets.randbits(64) or 1
        self.sequence_number = 0
        self._max_history_hashes = max_history_hashes
        self._max_hashes_per_message = max_hashes_per_message
        self._hashes: set[int] = set()
        self._history: dict[int, NumberedDelta] = {}
        self._first_held = 1
        self._history_cost = 0
        self._end = _End()
        self._changed = asyncio.Event()

    @property
    def num_hashes(self) -> int:
        """Cached blocks, including those whose parent is gone."""
        return len(self._hashes)

    def append(self, delta: CacheDelta) -> None:
        """Adds the changes of one step as one change, or several if too large for a message."""
        size = self._max_hashes_per_message
        if not (delta.stored or delta.removed):
            return
        if len(delta.stored) + len(delta.removed) <= size:
            self._append(delta)
            return
        for start in range(0, len(delta.stored), size):
            self._append(CacheDelta(stored=delta.stored[start : start + size]))
        for start in range(0, len(delta.removed), size):
            self._append(CacheDelta(removed=delta.removed[start : start + size]))

    def fail(self, error: RequestError) -> None:
        """Ends all watches with an error once they have read the rest; the first error counts.

        Watches that begin later end the same way, unless `recover` is called first.
        """
        if self._end.error is None:
            self._end.error = error
            self._announce()

    def recover(self) -> None:
        """Allows new watches again after `fail`."""
        self._end = _End()

    async def watch(
        self, epoch: int, sequence_number: int
    ) -> AsyncIterator[SnapshotPart | NumberedDelta]:
        """Yields the changes after a known state, or a snapshot first if they are not held.

        Args:
            epoch: Epoch of the watcher's state, 0 for none.
            sequence_number: The newest change that the watcher has.

        Raises:
            SlowReader: The next change was dropped before the watcher read it.
            RequestError: The error passed to `fail`.
        """
        end = self._end
        if epoch != self.epoch or not (
            self._first_held - 1 <= sequence_number <= self.sequence_number
        ):
            sequence_number = self.sequence_number
            for part in self._snapshot():
                yield part
        while True:
            if sequence_number == self.sequence_number:
                if end.error is not None:
                    raise end.error
                await self._changed.wait()
                continue
            sequence_number += 1
            if sequence_number < self._first_held:
                raise self._too_slow(sequence_number)
            yield self._history[sequence_number]

    def _append(self, delta: CacheDelta) -> None:
        self._hashes.update(delta.stored)
        self._hashes.difference_update(delta.removed)
        self.sequence_number += 1
        self._history[self.sequence_number] = NumberedDelta(
            sequence_number=self.sequence_number, delta=delta
        )
        self._history_cost += _cost(delta)
        while self._history_cost > self._max_history_hashes:
            self._history_cost -= _cost(self._history.pop(self._first_held).delta)
            self._first_held += 1
        self._announce()

    def _announce(self) -> None:
        # Current waiters hold the old event; later ones wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    def _snapshot(self) -> Iterator[SnapshotPart]:
        # Copy all of it now, before the first part is sent and the set changes.
        hashes = array("Q", self._hashes)
        number = self.sequence_number
        size = self._max_hashes_per_message
        starts = range(0, max(len(hashes), 1), size)
        for part_number, start in enumerate(starts, start=1):
            yield SnapshotPart(
                sequence_number=number,
                hashes=hashes[start : start + size],
                number=part_number,
                is_first=start == 0,
                is_last=start == starts[-1],
            )

    def _too_slow(self, sequence_number: int) -> SlowReader:
        return SlowReader(
            f"change {sequence_number} of the cache is no longer kept, the oldest one kept is "
            f"{self._first_held}; read faster",
            {
                "sequence_number": str(sequence_number),
                "oldest_sequence_number": str(self._first_held),
            },
        )


def _cost(delta: CacheDelta) -> int:
    return len(delta.stored) + len(delta.removed) + _DELTA_COST
