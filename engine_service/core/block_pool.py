"""Ownership of KV blocks and lookup of cached blocks by content."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat, takewhile
from typing import TYPE_CHECKING

from engine_service.core.recent_prompts import RecentPrompts
from engine_service.core.types import BlockContents, CacheDelta
from protos.wire.block_hash import full_blocks

if TYPE_CHECKING:
    from array import array

_NULL_BLOCK = 0

MAX_DESCRIBED_TOKENS = 32_768
"""Tokens of the blocks that one delta describes, which takes some 50 microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixMatch:
    """The cached blocks that a sequence of tokens starts with."""

    block_ids: list[int]
    parent: int | str
    """The parent of the next block in the chain."""
    num_unowned: int
    """Matched blocks without an owner; taking them reduces the number of free blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """Number of blocks in each state; the three add up to the size of the pool."""

    num_empty_blocks: int
    """Blocks without an owner that are not registered."""
    num_cached_blocks: int
    """Blocks without an owner that are still registered."""
    num_used_blocks: int
    """Blocks that sequences own."""


class BlockPool:
    """Allocates blocks 1 to `num_blocks`, counts their owners and indexes their contents.

    Blocks without an owner are kept in a list in order of reuse: blocks that are not findable
    come first, then the least recently freed. A block stays findable until it is allocated
    again. Every operation takes constant time per block.

    A block is registered under its hash, and so becomes findable, once the step that writes its
    keys and values is planned. This is safe: a sequence that finds it reads it in that step or
    later, and each layer writes all tokens before it reads any. Each registration has a number
    that is never reused and a parent: the number of the block before it, or the cache salt for a
    first block. A hit must match in tokens and in parent, so by induction the whole prefix and the
    salt match. Equal hashes of different contexts cost a hit but never mix contexts. What a prompt
    has in common with one before it is compared with that one's tokens: registrations that it
    matched, and that still exist, match again.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks is {num_blocks} and block_size {block_size}, both must be at least 1"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * (num_blocks + 1)

        # Free blocks are a doubly linked ring through the null block, which is never handed out.
        self._next = [*range(1, num_blocks + 1), _NULL_BLOCK]
        self._previous = [num_blocks, *range(num_blocks)]
        self._num_free = num_blocks
        self._num_cached = 0

        # Per block: registration number (0 if not registered), parent, hash and tokens.
        self._registrations = [0] * (num_blocks + 1)
        self._parents: list[int | str] = [0] * (num_blocks + 1)
        self._hashes = [0] * (num_blocks + 1)
        self._tokens = [b""] * (num_blocks + 1)
        self._block_of_hash: dict[int, int] = {}
        self._block_of_registration: dict[int, int] = {}
        self._last_registration = 0

        # Of the last prompts: the registrations of their cached blocks.
        self._matched = RecentPrompts[int](block_size)

        # Hashes changed since the last delta, and whether they were findable before.
        self._was_findable: dict[int, bool] = {}

        # Registered blocks that no delta has described, in order; None if nobody asks.
        self._undescribed: dict[int, None] | None = None

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated, including cached ones."""
        return self._num_free

    def ref_count(self, block_id: int) -> int:
        """Returns how many sequences own the block."""
        return self._ref_counts[block_id]

    def allocate(self, count: int) -> list[int]:
        """Allocates blocks with one owner each; their old contents are no longer findable.

        Raises:
            MemoryError: Fewer than `count` blocks are free. Nothing was allocated.
        """
        if count > self._num_free:
            raise MemoryError(f"{count} blocks asked for, {self._num_free} free")
        block_ids = []
        for _ in range(count):
            block_id = self._next[_NULL_BLOCK]
            self._unlink(block_id)
            self._ref_counts[block_id] = 1
            if self._registrations[block_id]:
                self._unregister(block_id)
            block_ids.append(block_id)
        return block_ids

    def touch(self, block_ids: Iterable[int]) -> None:
        """Adds an owner to each of these findable blocks."""
        for block_id in block_ids:
            if not self._ref_counts[block_id]:
                self._unlink(block_id)
            self._ref_counts[block_id] += 1

    def free(self, block_table: Sequence[int]) -> None:
        """Removes one owner from each block of a table.

        The end of the table is reused before its beginning: a prefix without its tail can
        still be hit, a tail without its prefix cannot.
        """
        for block_id in reversed(block_table):
            assert self._ref_counts[block_id] > 0, f"block {block_id} has no owner"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id]:
                continue
            if self._registrations[block_id]:
                self._link(block_id, before=_NULL_BLOCK)
            else:
                self._link(block_id, before=self._next[_NULL_BLOCK])

    def match_prefix(
        self, token_ids: "array[int]", block_hashes: "array[int]", cache_salt: str
    ) -> PrefixMatch:
        """Finds the longest cached prefix, which never includes the last token.

        The last token must always be computed, for its logits.

        Args:
            token_ids: [num_tokens] typecode "i".
            block_hashes: [num_tokens // block_size] low 64 bits of the digests.
            cache_salt: The salt used in the digests.
        """
        tokens = memoryview(token_ids)[:-1].tobytes() if self.enable_prefix_caching else b""
        registrations = self._matched.find(cache_salt, tokens)
        known = map(self._block_of_registration.get, registrations, repeat(_NULL_BLOCK))
        block_ids = list(takewhile(bool, known))
        num_known = len(block_ids)
        del registrations[num_known:]
        parent = registrations[-1] if registrations else cache_salt
        blocks = full_blocks(tokens, self.block_size, start=num_known)
        for block_hash, block in zip(block_hashes[num_known:], blocks, strict=False):
            block_id = self._block_of_hash.get(block_hash)
            if block_id is None or not self._holds(block_id, parent, block):
                break
            block_ids.append(block_id)
            parent = self._registrations[block_id]
            registrations.append(parent)
        if registrations:
            self._matched.keep(cache_salt, tokens, registrations)
        num_unowned = [self._ref_counts[block_id] for block_id in block_ids].count(0)
        return PrefixMatch(block_ids=block_ids, parent=parent, num_unowned=num_unowned)

    def is_live(self, parent: int | str) -> bool:
        """Returns whether a block with this parent is findable."""
        return isinstance(parent, str) or parent in self._block_of_registration

    def register(
        self, block_id: int, block_hash: int, parent: int | str, token_ids: "array[int]"
    ) -> int | None:
        """Makes a full block findable, unless another block with the same content already is.

        The first one registered wins and the duplicate stays unregistered, so that block tables
        only ever grow.

        Args:
            block_id: An owned block whose keys and values a planned step writes.
            block_hash: Low 64 bits of its digest.
            parent: Registration number of the block before it, or the cache salt.
            token_ids: [block_size] its tokens.

        Returns:
            The parent of the next block in the chain, or None if the hash belongs to different
            content.
        """
        holder = self._block_of_hash.get(block_hash)
        tokens = token_ids.tobytes()
        if holder is not None:
            if self._holds(holder, parent, tokens):
                return self._registrations[holder]
            if self.is_live(self._parents[holder]):
                return None
            # Its parent is gone, so it can never be hit. Replace it with one that can.
            self._unregister(holder)
        assert not self._registrations[block_id], f"block {block_id} is registered"
        self._last_registration += 1
        self._registrations[block_id] = self._last_registration
        self._block_of_registration[self._last_registration] = block_id
        self._parents[block_id] = parent
        self._hashes[block_id] = block_hash
        self._tokens[block_id] = tokens
        self._block_of_hash[block_hash] = block_id
        self._was_findable.setdefault(block_hash, False)
        if self._undescribed is not None:
            self._undescribed[block_id] = None
        return self._last_registration

    def forget(self, block_hashes: "array[int]") -> None:
        """Makes blocks unfindable, owned or not; unknown hashes are ignored."""
        for block_hash in block_hashes:
            block_id = self._block_of_hash.get(block_hash)
            if block_id is not None:
                self._unregister(block_id)

    def findable_hashes(self) -> frozenset[int]:
        """Returns the hashes of all registered blocks.

        Some can never be hit: a block whose parent is gone stays listed until it is reused.
        """
        return frozenset(self._block_of_hash)

    def take_delta(self) -> CacheDelta:
        """Returns the net change of `findable_hashes` since the last call."""
        delta = CacheDelta()
        if self._was_findable:
            for block_hash, was_findable in self._was_findable.items():
                is_findable = block_hash in self._block_of_hash
                if is_findable and not was_findable:
                    delta.stored.append(block_hash)
                elif was_findable and not is_findable:
                    delta.removed.append(block_hash)
            self._was_findable = {}
        if self._undescribed:
            delta = replace(delta, contents=self._describe(self._undescribed))
        return delta

    @property
    def has_undescribed(self) -> bool:
        """Whether blocks wait to be described."""
        return bool(self._undescribed)

    def describe_blocks(self, is_wanted: bool) -> None:
        """Describes in the next deltas what is registered now and later, or nothing any more."""
        # The hashes are in order of registration, so a parent comes before its children.
        self._undescribed = dict.fromkeys(self._block_of_hash.values()) if is_wanted else None

    def statistics(self) -> PoolStatistics:
        """Returns the number of blocks in each state."""
        return PoolStatistics(
            num_empty_blocks=self._num_free - self._num_cached,
            num_cached_blocks=self._num_cached,
            num_used_blocks=self.num_blocks - self._num_free,
        )

    def _describe(self, undescribed: dict[int, None]) -> BlockContents:
        """Takes the first of these blocks and returns what they hold.

        Left out are those whose parent is gone or is a salt.
        """
        contents = BlockContents()
        for block_id in list(islice(undescribed, max(1, MAX_DESCRIBED_TOKENS // self.block_size))):
            del undescribed[block_id]
            parent = self._parents[block_id]
            parent_hash = 0
            if isinstance(parent, str):
                if parent:
                    continue
            elif parent in self._block_of_registration:
                parent_hash = self._hashes[self._block_of_registration[parent]]
            else:
                continue
            contents.hashes.append(self._hashes[block_id])
            contents.parents.append(parent_hash)
            contents.token_ids.frombytes(self._tokens[block_id])
        return contents

    def _holds(self, block_id: int, parent: int | str, tokens: bytes) -> bool:
        return self._parents[block_id] == parent and self._tokens[block_id] == tokens

    def _unregister(self, block_id: int) -> None:
        is_free = not self._ref_counts[block_id]
        if is_free:
            self._unlink(block_id)
        block_hash = self._hashes[block_id]
        del self._block_of_hash[block_hash]
        del self._block_of_registration[self._registrations[block_id]]
        if self._undescribed is not None:
            self._undescribed.pop(block_id, None)
        self._registrations[block_id] = 0
        self._was_findable.setdefault(block_hash, True)
        if is_free:
            self._link(block_id, before=self._next[_NULL_BLOCK])

    def _link(self, block_id: int, *, before: int) -> None:
        previous = self._previous[before]
        self._next[previous] = self._previous[before] = block_id
        self._previous[block_id], self._next[block_id] = previous, before
        self._num_free += 1
        self._num_cached += self._registrations[block_id] != 0

    def _unlink(self, block_id: int) -> None:
        previous, following = self._previous[block_id], self._next[block_id]
        self._next[previous], self._previous[following] = following, previous
        self._num_free -= 1
        self._num_cached -= self._registrations[block_id] != 0
