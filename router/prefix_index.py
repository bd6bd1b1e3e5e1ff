"""Which engine holds which blocks: one table for the fleet, fed by every engine's WatchCache.

A block is the low 64 bits of its chained hash, so that equal values mean equal whole prefixes.
Each block maps to a bit mask of engines; what every engine holds of a prompt is found by one walk
down its hashes. A hash collision costs one bad placement and nothing more: engines compare tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from router.types import CacheUpdate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reservation:
    """Blocks entered for a request under way, before its engine confirms them."""

    engine: str
    hashes: Sequence[int]
    entry: "_Engine"
    """The engine's entry in the index; after a restart it has another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStatistics:
    """Size and health of the index."""

    num_blocks: int
    """Distinct blocks, speculative ones included."""
    num_entries: int
    """Confirmed pairs of engine and block."""
    num_speculative_entries: int
    num_gaps: int
    """Deltas that did not follow what was held, each repaired by a snapshot."""
    num_snapshots: int
    """Snapshots begun; more than one per engine start means repairs or long disconnections."""
    num_rejected_entries: int
    """Blocks not entered because an engine reported more than it has."""


@dataclass(slots=True, kw_only=True)
class _Engine:
    bit: int
    max_blocks: int
    confirmed: set[int] = field(default_factory=set)
    speculative: dict[int, int] = field(default_factory=dict)
    """Block to number of reservations; such a block is not in `confirmed`."""
    epoch: int = 0
    sequence_number: int = 0
    is_complete: bool = False


class PrefixIndex:
    """Maps block hashes to the engines that hold them.

    Bounded by what the engines say they can hold plus the prompts under way. Events cost O(1) per
    block, the removal of an engine O(its own blocks). One asyncio task at a time may call it.
    """

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._engines: dict[str, _Engine] = {}
        self._names: dict[int, str] = {}
        self._num_gaps = 0
        self._num_snapshots = 0
        self._num_rejected = 0

    def add_engine(self, engine: str, max_blocks: int, epoch: int) -> None:
        """Makes room for an engine; what is held of an earlier epoch of it is forgotten."""
        known = self._engines.get(engine)
        if known is not None and known.epoch == epoch:
            known.max_blocks = max_blocks
            return
        self.remove_engine(engine)
        number = 0
        while 1 << number in self._names:
            number += 1
        self._names[1 << number] = engine
        self._engines[engine] = _Engine(bit=1 << number, max_blocks=max_blocks, epoch=epoch)

    def remove_engine(self, engine: str) -> None:
        """Forgets an engine and all that it holds; an unknown one is ignored."""
        known = self._engines.get(engine)
        if known is not None:
            self._clear(known)
            self._void_reservations(known)
            del self._names[known.bit]
            del self._engines[engine]

    def position(self, engine: str) -> tuple[int, int]:
        """Returns epoch and sequence number of what is held, (0, 0) if a snapshot is needed."""
        known = self._engines[engine]
        return (known.epoch, known.sequence_number) if known.is_complete else (0, 0)

    def apply(self, engine: str, update: CacheUpdate) -> bool:
        """Takes in one message of an engine's WatchCache.

        Returns:
            False when the message does not follow what is held, by a gap in the sequence numbers,
            another epoch or the middle of a snapshot: the caller must ask for a new snapshot.
            What is held stays until then, as a hint. A repeated delta is ignored.
        """
        known = self._engines[engine]
        if update.is_snapshot:
            follows = self._begin_or_continue(known, update)
        else:
            follows = known.is_complete and update.epoch == known.epoch
            if follows and update.sequence_number <= known.sequence_number:
                return True
            follows = follows and update.sequence_number == known.sequence_number + 1
        if not follows:
            known.is_complete = False
            self._num_gaps += 1
            return False
        self._remove(known, update.removed)
        self._store(known, update.stored)
        known.sequence_number = update.sequence_number
        if update.is_last:
            known.is_complete = True
        return True

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """Returns, per engine that holds any, how many leading blocks of a prompt it holds."""
        found: dict[str, int] = {}
        get = self._masks.get
        mask = -1
        depth = 0
        for depth, block in enumerate(hashes):
            narrowed = mask & get(block, 0)
            if narrowed != mask:
                if depth:
                    self._note(found, mask & ~narrowed, depth)
                mask = narrowed
                if not mask:
                    return found
        if hashes:
            self._note(found, mask, depth + 1)
        return found

    def reserve(self, engine: str, hashes: Sequence[int]) -> Reservation:
        """Enters the blocks of a prompt just sent, so that equal prompts follow it.

        The engine confirms them by a delta; `release` withdraws what it has not confirmed.
        """
        known = self._engines[engine]
        missing = [block for block in hashes if block not in known.confirmed]
        for block in missing:
            known.speculative[block] = known.speculative.get(block, 0) + 1
            self._masks[block] = self._masks.get(block, 0) | known.bit
        return Reservation(engine=engine, hashes=missing, entry=known)

    def release(self, reservation: Reservation) -> None:
        """Withdraws a reservation's unconfirmed blocks, unless another one still needs them."""
        known = reservation.entry
        if self._engines.get(reservation.engine) is not known:
            # The engine left or restarted, which voided its reservations.
            return
        for block in reservation.hashes:
            count = known.speculative.get(block, 0)
            if count > 1:
                known.speculative[block] = count - 1
            elif count == 1:
                del known.speculative[block]
                self._unset(block, known.bit)

    def num_blocks(self, engine: str) -> int:
        """Returns how many blocks an engine is known to hold, 0 for an unknown engine."""
        known = self._engines.get(engine)
        return len(known.confirmed) if known else 0

    def statistics(self) -> IndexStatistics:
        """Returns size and health of the index."""
        engines = self._engines.values()
        return IndexStatistics(
            num_blocks=len(self._masks),
            num_entries=sum(len(engine.confirmed) for engine in engines),
            num_speculative_entries=sum(len(engine.speculative) for engine in engines),
            num_gaps=self._num_gaps,
            num_snapshots=self._num_snapshots,
            num_rejected_entries=self._num_rejected,
        )

    def _begin_or_continue(self, known: _Engine, update: CacheUpdate) -> bool:
        if update.is_first:
            self._clear(known)
            known.epoch = update.epoch
            known.is_complete = False
            self._num_snapshots += 1
            return True
        return not known.is_complete and (update.epoch, update.sequence_number) == (
            known.epoch,
            known.sequence_number,
        )

    def _store(self, known: _Engine, blocks: Sequence[int]) -> None:
        masks, bit, confirmed, speculative = (
            self._masks, known.bit, known.confirmed, known.speculative,
        )  # fmt: skip
        room = known.max_blocks - len(confirmed)
        for block in blocks:
            if block in confirmed:
                continue
            if room <= 0:
                self._num_rejected += 1
                continue
            room -= 1
            confirmed.add(block)
            speculative.pop(block, None)
            masks[block] = masks.get(block, 0) | bit

    def _remove(self, known: _Engine, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block in known.confirmed:
                known.confirmed.discard(block)
                self._unset(block, known.bit)

    def _clear(self, known: _Engine) -> None:
        for block in known.confirmed:
            self._unset(block, known.bit)
        known.confirmed.clear()

    def _void_reservations(self, known: _Engine) -> None:
        for block in known.speculative:
            self._unset(block, known.bit)
        known.speculative.clear()

    def _unset(self, block: int, bit: int) -> None:
        mask = self._masks[block] & ~bit
        if mask:
            self._masks[block] = mask
        else:
            del self._masks[block]

    def _note(self, found: dict[str, int], mask: int, depth: int) -> None:
        while mask:
            bit = mask & -mask
            found[self._names[bit]] = depth
            mask ^= bit
