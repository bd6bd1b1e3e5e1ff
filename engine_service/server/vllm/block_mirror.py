"""The cached blocks with their tokens, and the newest changes, for subscribers to KV events."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine_service.core.types import BlockContents, CacheDelta
from engine_service.errors import QueueFull, RequestError

if TYPE_CHECKING:
    from array import array

_MAX_SUBSCRIBERS = 32
"""Each may hold a copy of the list of blocks, though not of their tokens."""
_MAX_HISTORY_TOKENS = 1 << 22
"""Tokens of the blocks in the changes that are kept."""
_CHANGE_COST = 64
"""Overhead of a change, or of a removed block, counted in tokens."""
_NO_PARENT = 0


class Block(NamedTuple):
    """One block."""

    hash: int
    parent: int
    """The hash of the block before it; 0 if it is the first of its prompt."""
    token_ids: "array[int]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of the cache; removals come first."""

    sequence_number: int
    removed: list[int]
    stored: list[Block]
    """A block comes after its parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPart:
    """Some of the blocks held after a change; a block comes after its parent."""

    sequence_number: int
    """Those of a snapshot are consecutive and end with the number of that change."""
    index: int
    count: int
    num_blocks: int
    """In the whole snapshot."""
    stored: list[Block]


class BlockMirror:
    """Follows the core's blocks while somebody subscribes, and costs nothing otherwise.

    Subscribers have no queues: each reads the shared history at its own pace, and gets a snapshot
    when the next change that it needs has been dropped.

    Args:
        describe_blocks: Asks the core to describe its blocks from now on, or no longer.
        max_tokens_per_message: Bounds a part of a snapshot.
        max_history_tokens: Bounds the changes that are kept.
    """

    def __init__(
        self,
        describe_blocks: Callable[[bool], None],
        *,
        max_tokens_per_message: int,
        max_history_tokens: int = _MAX_HISTORY_TOKENS,
    ) -> None:
        self._describe_blocks = describe_blocks
        self._max_tokens_per_message = max_tokens_per_message
        self._max_history_tokens = max_history_tokens
        self._num_subscribers = 0
        # A subscriber's number from an earlier start of the engine is below all of this one.
        self._sequence_number = time.time_ns() // 1000
        self._blocks: dict[int, Block] = {}
        self._history: dict[int, Change] = {}
        self._first_held = self._sequence_number + 1
        self._history_cost = 0
        self._error: RequestError | None = None
        self._changed = asyncio.Event()

    def apply(self, delta: CacheDelta, block_size: int) -> None:
        """Takes in the changes of one step, if anybody subscribes."""
        if not self._num_subscribers:
            return
        removed = [found for found in delta.removed if self._blocks.pop(found, None)]
        stored = [] if delta.contents is None else self._store(delta.contents, block_size, removed)
        if removed or stored:
            self._append(removed, stored)

    def fail(self, error: RequestError) -> None:
        """Ends all subscriptions with an error once they have read the rest."""
        self._error = error
        self._announce()

    async def subscribe(self, sequence_number: int) -> AsyncGenerator[Change | SnapshotPart, None]:
        """Yields the changes after a known one, or a snapshot first if they are not held.

        Args:
            sequence_number: The newest change that the subscriber has; 0 for none.

        Raises:
            QueueFull: There are too many subscribers.
            RequestError: The error passed to `fail`.
        """
        self._enter()
        try:
            while True:
                if not self._first_held - 1 <= sequence_number <= self._sequence_number:
                    sequence_number = self._sequence_number
                    async for part in self._snapshot():
                        yield part
                elif sequence_number < self._sequence_number:
                    sequence_number += 1
                    yield self._history[sequence_number]
                elif self._error is not None:
                    raise self._error
                else:
                    await self._changed.wait()
        finally:
            self._leave()

    def _enter(self) -> None:
        if self._num_subscribers >= _MAX_SUBSCRIBERS:
            raise QueueFull(
                f"{self._num_subscribers} calls of SubscribeKvEvents are open, which is the most "
                "allowed; end one",
                {"value": str(self._num_subscribers), "bounds": f"0 to {_MAX_SUBSCRIBERS}"},
            )
        self._num_subscribers += 1
        if self._num_subscribers == 1:
            self._error = None
            self._describe_blocks(True)

    def _leave(self) -> None:
        self._num_subscribers -= 1
        if not self._num_subscribers:
            self._describe_blocks(False)
            self._blocks = {}
            self._history = {}
            self._history_cost = 0
            # What was removed meanwhile is unknown later.
            self._sequence_number += 1
            self._first_held = self._sequence_number + 1

    def _store(self, contents: BlockContents, block_size: int, removed: list[int]) -> list[Block]:
        stored = []
        for index, (own, parent) in enumerate(zip(contents.hashes, contents.parents, strict=True)):
            # Of a prompt with a salt, which only requests with that salt can hit.
            if parent != _NO_PARENT and parent not in self._blocks:
                continue
            start = index * block_size
            # It was registered anew; a subscriber may lack it, if its parent was gone for a while.
            if self._blocks.pop(own, None):
                removed.append(own)
            block = Block(own, parent, contents.token_ids[start : start + block_size])
            self._blocks[own] = block
            stored.append(block)
        return stored

    def _append(self, removed: list[int], stored: list[Block]) -> None:
        self._sequence_number += 1
        change = Change(sequence_number=self._sequence_number, removed=removed, stored=stored)
        self._history[self._sequence_number] = change
        self._history_cost += _cost(change)
        while self._history_cost > self._max_history_tokens:
            self._history_cost -= _cost(self._history.pop(self._first_held))
            self._first_held += 1
        self._announce()

    def _announce(self) -> None:
        # Current waiters hold the old event; later ones wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    async def _snapshot(self) -> AsyncIterator[SnapshotPart]:
        # All parts are of now, whatever changes before the last one is sent.
        last, blocks = self._sequence_number, dict(self._blocks)
        size = max(1, self._max_tokens_per_message // _block_size(blocks))
        order = await asyncio.to_thread(_parents_first, blocks)
        count = max(1, -(-len(order) // size))
        for index in range(count):
            hashes = order[index * size : (index + 1) * size]
            yield SnapshotPart(
                sequence_number=last - count + 1 + index,
                index=index,
                count=count,
                num_blocks=len(order),
                stored=[blocks[own] for own in hashes],
            )


def _cost(change: Change) -> int:
    num_tokens = sum(len(block.token_ids) for block in change.stored)
    return num_tokens + _CHANGE_COST * (1 + len(change.removed))


def _block_size(blocks: Mapping[int, Block]) -> int:
    return len(next(iter(blocks.values())).token_ids) if blocks else 1


def _parents_first(blocks: Mapping[int, Block]) -> list[int]:
    """Returns the hashes of the blocks that a prompt can hit, in an order that has parents first.

    Takes time linear in the number of blocks, some 10 ms for 20,000.
    """
    is_hit: dict[int, bool] = {_NO_PARENT: True}
    order = []
    for own in blocks:
        chain = []
        while own not in is_hit and own in blocks:
            chain.append(own)
            own = blocks[own].parent
        found = is_hit.get(own, False)
        for member in reversed(chain):
            is_hit[member] = found
            if found:
                order.append(member)
    return order
