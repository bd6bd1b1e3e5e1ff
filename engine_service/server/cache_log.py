"""The changes of the prefix cache, numbered, for watchers that follow it."""

import asyncio
import secrets
from array import array
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from engine_service.core.types import CacheDelta
from engine_service.errors import RequestError, SlowReader
from protos.wire.limits import MAX_BLOCK_HASHES

_DELTA_COST = 32
"""Hashes that a delta counts as in the history, beside its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPart:
    """Some of the hashes of blocks held after change `sequence_number`."""

    sequence_number: int
    hashes: "array[int]"
    number: int
    """Its place in the snapshot, from 1 on."""
    is_first: bool
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedDelta:
    """Change `sequence_number`."""

    sequence_number: int
    delta: CacheDelta


@dataclass(slots=True)
class _End:
    """What the watches that began together end with, once they do."""

    error: RequestError | None = None


class CacheLog:
    """The hashes of the blocks that the cache holds, and the newest changes that led there.

    A watcher has no queue of its own: it reads the shared history at its own pace and is cut off
    when the change that it needs next is no longer held.

    Attributes:
        epoch: Tells this start of the engine from every other; never 0.
        sequence_number: Of the newest change; 0 before any.
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
        """Blocks that the cache holds, also those whose parent is gone."""
        return len(self._hashes)

    def append(self, delta: CacheDelta) -> None:
        """Takes what one step changed, as one change, or more if it is too large for a message."""
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
        """Ends all watches with an error once they have read the rest; the first one counts.

        So do those that begin later, unless `recover` comes before them.
        """
        if self._end.error is None:
            self._end.error = error
            self._announce()

    def recover(self) -> None:
        """Lets new watches begin, after `fail`."""
        self._end = _End()

    async def watch(
        self, epoch: int, sequence_number: int
    ) -> AsyncIterator[SnapshotPart | NumberedDelta]:
        """Follows the changes after a known state, or after a snapshot if that is not held.

        Args:
            epoch: Of the state that the watcher holds, 0 for none.
            sequence_number: Of the newest change that the watcher holds.

        Raises:
            SlowReader: The change to come next has been dropped meanwhile.
            RequestError: That of `fail`.
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
        # Who waits holds the old event; who comes later waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    def _snapshot(self) -> Iterator[SnapshotPart]:
        # All of it is copied now, before the first part is sent and the set changes.
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
            f"change {sequence_number} of the cache is no longer held, the oldest is "
            f"{self._first_held}",
            {
                "sequence_number": str(sequence_number),
                "oldest_sequence_number": str(self._first_held),
            },
        )


def _cost(delta: CacheDelta) -> int:
    return len(delta.stored) + len(delta.removed) + _DELTA_COST
