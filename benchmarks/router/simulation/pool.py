"""The KV blocks of a simulated engine, and the sequences that own them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.router.simulation.workload import Request


@dataclass(slots=True, eq=False)
class EngineSequence:
    """A request on an engine, that waits or runs."""

    request: Request
    num_outputs: int = 0
    """Sampled before it entered its present phase."""
    num_computed: int = 0
    """Tokens in the cache, while it is in its prompt."""
    num_cached: int | None = None
    """Found in the cache at its first admission."""
    hashed: list[int] = field(default_factory=list)
    """Findable blocks that it owns, perhaps with others."""
    num_private: int = 0
    """Its other blocks."""
    decode_start: int = -1
    """The engine's count of steps when it began to decode; -1 in its prompt."""

    @property
    def num_known(self) -> int:
        """Tokens of the prompt and those sampled before its present phase."""
        return self.request.num_prompt_tokens + self.num_outputs


class Pool:
    """Counts blocks, and knows which can be found."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_private = 0
        self._owners: dict[int, int] = {}
        self._cached: dict[int, None] = {}
        self._was_findable: dict[int, bool] = {}

    @property
    def num_free(self) -> int:
        """Blocks without an owner, the cached ones among them."""
        return self.num_blocks - self.num_private - len(self._owners)

    @property
    def num_cached(self) -> int:
        """Findable blocks without an owner."""
        return len(self._cached)

    def match(self, hashes: Sequence[int]) -> tuple[int, int]:
        """Returns how many leading blocks are findable, and how many of them nobody owns."""
        depth = num_unowned = 0
        for block in hashes:
            if block in self._cached:
                num_unowned += 1
            elif block not in self._owners:
                break
            depth += 1
        return depth, num_unowned

    def touch(self, blocks: Iterable[int]) -> None:
        """Adds an owner to findable blocks."""
        for block in blocks:
            if block in self._cached:
                del self._cached[block]
            self._owners[block] = self._owners.get(block, 0) + 1

    def allocate(self, count: int) -> None:
        """Hands out private blocks, the least recently used cached ones when no other is left."""
        if count > self.num_free:
            raise MemoryError(f"{count} blocks asked for, {self.num_free} free")
        self.num_private += count
        num_excess = self.num_private + len(self._owners) + len(self._cached) - self.num_blocks
        for _ in range(num_excess):
            block = next(iter(self._cached))
            del self._cached[block]
            self._was_findable.setdefault(block, True)

    def register(self, sequence: EngineSequence, blocks: Iterable[int]) -> None:
        """Makes private blocks of a sequence findable, but for those of which there is one."""
        for block in blocks:
            if block in self._owners or block in self._cached:
                continue
            self._was_findable.setdefault(block, False)
            self._owners[block] = 1
            sequence.hashed.append(block)
            sequence.num_private -= 1
            self.num_private -= 1

    def release(self, sequence: EngineSequence) -> None:
        """Takes all blocks from a sequence."""
        self.num_private -= sequence.num_private
        sequence.num_private = 0
        for block in reversed(sequence.hashed):
            count = self._owners[block] - 1
            if count:
                self._owners[block] = count
            else:
                del self._owners[block]
                self._cached[block] = None
        sequence.hashed = []

    def take_delta(self) -> tuple[list[int], list[int]]:
        """Returns the blocks that became findable, and those that no longer are."""
        stored, removed = [], []
        for block, was_findable in self._was_findable.items():
            is_findable = block in self._owners or block in self._cached
            if is_findable and not was_findable:
                stored.append(block)
            elif was_findable and not is_findable:
                removed.append(block)
        self._was_findable = {}
        return stored, removed
