"""Records which engine holds which blocks: one table, fed by every engine's WatchCache.

A block is the low 64 bits of its chained hash, so that equal values mean equal whole prefixes.
Each block maps to a bit mask of engines; one walk along the hashes of a prompt finds what every
engine holds of it. A hash collision costs one bad placement at most: engines compare tokens.

No call blocks the event loop for long. The table is split into many dicts, since one of 5 M entries
blocks for a second when it grows. An engine that leaves, or starts a snapshot, loses its bit at
once; `sweep` clears the bit from the table in slices, and only then may it be used again.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from router.placement.block_table import BlockTable
from router.types.engine_state import CacheUpdate

SLICE_BLOCKS = 2048
"""Blocks applied at a time, in a millisecond or two."""

_SWEEP_BLOCKS = 512

# Shards are chosen by the top bits of a hash, since a dict spreads its keys by the low ones. Fewer
# shards would block for too long as they grow; more would cost more cache misses per lookup.
_SHIFT = 64 - 14
_RESERVED_SHIFT = 64 - 8

_MAX_SHARED_MASKS = 1 << 14

_NUM_SCANNED_AS_ONE = 8
"""Checking whether a block must be swept is this many times cheaper than sweeping it."""

# Size of a 64-bit integer in Python: 36 bytes, rounded up.
_HASH_BYTES = 48


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reservation:
    """Blocks reserved for a request in progress: its engine has them, or will have them soon."""

    hashes: Sequence[int]
    entry: "_Engine"
    """The engine's entry in the index; after a restart it has a new entry without reservations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStatistics:
    """Size and health of the index."""

    num_blocks: int
    """Distinct blocks that engines hold; those of an engine that left count until swept."""
    num_entries: int
    """Pairs of an engine and a block that it holds."""
    num_speculative_entries: int
    """Pairs of an engine and a block that is reserved for a request but not held."""
    num_gaps: int
    """Messages that did not follow the known state; a snapshot repairs each."""
    num_snapshots: int
    """Snapshots started; more than one per engine start means repairs or long disconnections."""
    num_rejected_entries: int
    """Blocks not entered because an engine reported more than it has."""
    num_bytes: int = 0
    """Memory of the index: its dicts as Python reports their sizes, and the hashes of held blocks.
    It excludes reserved hashes, which belong to the requests, and masks, since blocks held by the
    same engines share one. At worst, if no two are equal, masks take as much as the hashes."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Engine:
    bit: int
    max_blocks: int
    epoch: int
    num_held: int = 0
    sequence_number: int = 0
    is_complete: bool = False
    is_in_snapshot: bool = False
    part_number: int = 0
    """The latest part of the snapshot; 0 if the engine does not number its parts."""
    reserved: BlockTable = field(default_factory=lambda: BlockTable.empty(_RESERVED_SHIFT))
    """Number of reservations by block."""
    num_unconfirmed: int = 0
    """Blocks that are reserved but not held."""


class PrefixIndex:
    """Maps block hashes to the engines that hold them.

    Its size is bounded by what the engines report they can hold, plus the prompts in progress. Only
    one asyncio task at a time may call it.

    Attributes:
        large_updates: A task holds it while it applies a message of more than one slice. Otherwise
            the slices of many engines' snapshots could all run in one iteration of the event loop.
    """

    def __init__(self) -> None:
        self.large_updates = asyncio.Lock()
        self._table = BlockTable.empty(_SHIFT)
        self._engines: dict[str, _Engine] = {}
        self._names: dict[int, str] = {}
        self._live = 0
        """The bits of all current engines; ignore all others in a mask."""
        self._dead = 0
        """Bits of former engines that some masks still contain."""
        self._sweeper = self._sweep_forever()
        self._masks: dict[int, int] = {}
        """Maps each mask to itself, so that equal masks share one object."""
        self._num_gaps = 0
        self._num_snapshots = 0
        self._num_rejected = 0

    def add_engine(self, engine: str, max_blocks: int, epoch: int) -> None:
        """Adds an engine, and forgets the state of an earlier epoch of it."""
        known = self._engines.get(engine)
        if known is not None and known.epoch == epoch:
            known.max_blocks = max_blocks
            return
        self.remove_engine(engine)
        self._enter(engine, max_blocks, epoch)

    def remove_engine(self, engine: str) -> None:
        """Forgets an engine, its blocks and its reservations; an unknown one is ignored."""
        known = self._engines.pop(engine, None)
        if known is not None:
            self._take_bit(known)

    def position(self, engine: str) -> tuple[int, int]:
        """Returns epoch and sequence number of the known state, (0, 0) if a snapshot is needed."""
        known = self._engines[engine]
        return (known.epoch, known.sequence_number) if known.is_complete else (0, 0)

    def apply(self, engine: str, update: CacheUpdate) -> bool:
        """Applies one message of an engine's WatchCache.

        Returns:
            False if the message does not follow the known state, because of a gap in the sequence
            numbers, another epoch, or a snapshot part out of order. The caller must then ask for a
            new snapshot; until it comes, the known state stays as a hint. A repeated delta is
            ignored.
        """
        return all(self.apply_in_slices(engine, update))

    def apply_in_slices(self, engine: str, update: CacheUpdate) -> Iterator[bool]:
        """Applies one message of an engine's WatchCache, some thousand blocks per iteration.

        Between iterations the caller may call anything else, except for another message of this
        engine. If iteration stops early, the message must be sent again: `position` is before it.

        Yields:
            True after each slice; False, as the last item, where `apply` would return False.
        """
        known = self._engines[engine]
        if self._is_repeated(known, update):
            return
        if update.is_snapshot and update.is_first:
            known = self._begin_snapshot(engine, known, update)
        elif not self._follows(known, update):
            known.is_complete = known.is_in_snapshot = False
            self._num_gaps += 1
            yield False
            return
        for enter, blocks in (self._remove, update.removed), (self._store, update.stored):
            for start in range(0, len(blocks), SLICE_BLOCKS):
                enter(known, blocks[start : start + SLICE_BLOCKS])
                self.sweep()
                yield True
                if self._engines.get(engine) is not known:
                    yield False
                    return
        known.sequence_number = update.sequence_number
        known.part_number = update.part_number
        if update.is_snapshot and update.is_last:
            known.is_complete, known.is_in_snapshot = True, False

    def sweep(self, max_blocks: int = _SWEEP_BLOCKS) -> bool:
        """Clears the bits of former engines from a part of the table.

        Each slice of a message does this too. Calling it is needed only to free memory while no
        messages come.

        Args:
            max_blocks: Roughly how many blocks to sweep; several times as many are checked.

        Returns:
            Whether there is more to do.
        """
        while self._dead and max_blocks > 0:
            max_blocks -= next(self._sweeper)
        return self._dead != 0

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """Returns how many leading blocks of a prompt each engine has, if any.

        An engine has the blocks that it holds and those reserved on it.
        """
        found = self._match_held(hashes)
        for engine, known in self._engines.items():
            num_reserved = _num_leading(known.reserved, hashes)
            if num_reserved > found.get(engine, 0):
                found[engine] = self._extend(known, hashes, num_reserved)
        return found

    def reserve(self, engine: str, hashes: Sequence[int]) -> Reservation:
        """Reserves the blocks of a prompt just sent, so that equal prompts follow it.

        Until `release`, the engine counts as having them, even if it loses some: it will compute
        them again.

        Args:
            engine: The engine's name.
            hashes: Hashes of the prompt's blocks, from the first on. They must not change.
        """
        known = self._engines[engine]
        shard_of, held_of, bit = known.reserved.shard_of, self._table.shard_of, known.bit
        for block in hashes:
            shard = shard_of[block >> _RESERVED_SHIFT]
            count = shard.get(block, 0)
            shard[block] = count + 1
            # As `_holds`, which takes longer than all else here.
            if not count and not held_of[block >> _SHIFT].get(block, 0) & bit:
                known.num_unconfirmed += 1
        return Reservation(hashes=hashes, entry=known)

    def release(self, reservation: Reservation) -> None:
        """Ends a reservation; call it exactly once. Blocks that the engine holds stay."""
        known = reservation.entry
        shard_of, held_of, bit = known.reserved.shard_of, self._table.shard_of, known.bit
        for block in reservation.hashes:
            shard = shard_of[block >> _RESERVED_SHIFT]
            count = shard[block] - 1
            if count:
                shard[block] = count
            else:
                del shard[block]
                known.num_unconfirmed -= not held_of[block >> _SHIFT].get(block, 0) & bit

    def num_blocks(self, engine: str) -> int:
        """Returns how many blocks an engine is known to hold; 0 for an unknown engine."""
        known = self._engines.get(engine)
        return known.num_held if known else 0

    def statistics(self) -> IndexStatistics:
        """Returns size and health of the index."""
        engines = self._engines.values()
        num_blocks = len(self._table)
        num_bytes = self._table.num_bytes + sum(engine.reserved.num_bytes for engine in engines)
        return IndexStatistics(
            num_blocks=num_blocks,
            num_entries=sum(engine.num_held for engine in engines),
            num_speculative_entries=sum(engine.num_unconfirmed for engine in engines),
            num_gaps=self._num_gaps,
            num_snapshots=self._num_snapshots,
            num_rejected_entries=self._num_rejected,
            num_bytes=num_bytes + num_blocks * _HASH_BYTES,
        )

    def _enter(self, engine: str, max_blocks: int, epoch: int) -> _Engine:
        known = _Engine(bit=0, max_blocks=max_blocks, epoch=epoch)
        self._engines[engine] = known
        self._give_bit(engine, known)
        return known

    def _give_bit(self, engine: str, known: _Engine) -> None:
        taken = self._live | self._dead
        known.bit = ~taken & (taken + 1)
        self._live |= known.bit
        self._names[known.bit] = engine

    def _take_bit(self, known: _Engine) -> None:
        """Drops all that an engine holds at once; its reservations stay."""
        self._live &= ~known.bit
        del self._names[known.bit]
        if known.num_held:
            self._dead |= known.bit
            known.num_held = 0

    def _is_repeated(self, known: _Engine, update: CacheUpdate) -> bool:
        return (
            not update.is_snapshot
            and known.is_complete
            and update.epoch == known.epoch
            and update.sequence_number <= known.sequence_number
        )

    def _follows(self, known: _Engine, update: CacheUpdate) -> bool:
        held = (known.epoch, known.sequence_number)
        if update.is_snapshot:
            next_part = known.part_number and known.part_number + 1
            return (
                known.is_in_snapshot
                and update.part_number == next_part
                and (update.epoch, update.sequence_number) == held
            )
        return known.is_complete and (update.epoch, update.sequence_number - 1) == held

    def _begin_snapshot(self, engine: str, known: _Engine, update: CacheUpdate) -> _Engine:
        if update.epoch == known.epoch:
            self._take_bit(known)
            self._give_bit(engine, known)
            known.num_unconfirmed = len(known.reserved)
        else:
            self.remove_engine(engine)
            known = self._enter(engine, known.max_blocks, update.epoch)
        known.sequence_number = update.sequence_number
        known.is_complete, known.is_in_snapshot = False, True
        self._num_snapshots += 1
        return known

    def _store(self, known: _Engine, blocks: Sequence[int]) -> None:
        masks, shard_of, bit = self._masks, self._table.shard_of, known.bit
        if len(masks) > _MAX_SHARED_MASKS:
            masks.clear()
        room = known.max_blocks - known.num_held
        is_any_reserved = len(known.reserved) > 0
        for block in blocks:
            shard = shard_of[block >> _SHIFT]
            mask = shard.get(block, 0)
            if mask & bit:
                continue
            if room <= 0:
                self._num_rejected += 1
                continue
            room -= 1
            mask |= bit
            shard[block] = masks.setdefault(mask, mask)
            if is_any_reserved and block in known.reserved:
                known.num_unconfirmed -= 1
        known.num_held = known.max_blocks - room

    def _remove(self, known: _Engine, blocks: Sequence[int]) -> None:
        masks, shard_of, bit = self._masks, self._table.shard_of, known.bit
        others = self._live & ~bit
        is_any_reserved = len(known.reserved) > 0
        for block in blocks:
            shard = shard_of[block >> _SHIFT]
            mask = shard.get(block, 0)
            if not mask & bit:
                continue
            known.num_held -= 1
            if is_any_reserved and block in known.reserved:
                known.num_unconfirmed += 1
            mask &= others
            if mask:
                shard[block] = masks.setdefault(mask, mask)
            else:
                del shard[block]

    def _sweep_forever(self) -> Iterator[int]:
        """Sweeps the whole table in an endless loop; yields the cost of each step, in blocks."""
        while True:
            dead = self._dead
            for shard in self._table.shards:
                stale = _keys_of(shard, dead)
                yield 1 + len(shard) // _NUM_SCANNED_AS_ONE
                while stale:
                    # Deleted in parts too: these are the last references to the hashes.
                    self._sweep(shard, stale[-_SWEEP_BLOCKS:])
                    del stale[-_SWEEP_BLOCKS:]
                    yield _SWEEP_BLOCKS
            self._dead &= ~dead
            yield 1

    def _sweep(self, shard: dict[int, int], blocks: Sequence[int]) -> None:
        # Meanwhile a stale block may have been removed or stored again.
        masks, live = self._masks, self._live
        for block in blocks:
            mask = shard.get(block, 0)
            kept = mask & live
            if kept:
                shard[block] = masks.setdefault(kept, kept)
            elif mask:
                del shard[block]
        if not shard:
            # Only `clear` frees the memory of a dict.
            shard.clear()

    def _match_held(self, hashes: Sequence[int]) -> dict[str, int]:
        found: dict[str, int] = {}
        shard_of = self._table.shard_of
        mask = self._live
        for depth, block in enumerate(hashes):
            narrowed = mask & shard_of[block >> _SHIFT].get(block, 0)
            if narrowed != mask:
                if depth:
                    self._note(found, mask & ~narrowed, depth)
                mask = narrowed
                if not mask:
                    return found
        if hashes:
            self._note(found, mask, len(hashes))
        return found

    def _extend(self, known: _Engine, hashes: Sequence[int], depth: int) -> int:
        """Returns how many leading blocks an engine has, given that it has the first `depth`."""
        while depth < len(hashes) and self._holds(known, hashes[depth]):
            depth += 1
        return depth

    def _holds(self, known: _Engine, block: int) -> bool:
        return self._table.shard_of[block >> _SHIFT].get(block, 0) & known.bit != 0

    def _note(self, found: dict[str, int], mask: int, depth: int) -> None:
        while mask:
            bit = mask & -mask
            found[self._names[bit]] = depth
            mask ^= bit


def _keys_of(shard: dict[int, int], bits: int) -> list[int]:
    """Returns the blocks whose masks contain any of these bits."""
    places = [place for place, mask in enumerate(shard.values()) if mask & bits]
    if not places:
        return []
    # Faster than iterating over the items: only the keys found are touched.
    blocks = list(shard)
    return [blocks[place] for place in places]


def _num_leading(reserved: BlockTable, hashes: Sequence[int]) -> int:
    """Returns how many leading blocks are reserved.

    A block is reserved together with all blocks before it, and its hash determines these. So no
    block after the first missing one needs to be looked up.
    """
    if not hashes or hashes[0] not in reserved:
        return 0
    return bisect_left(hashes, True, key=lambda block: block not in reserved)
