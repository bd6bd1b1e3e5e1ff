"""What was found out about the blocks of the last prompts, for others that begin alike."""

from collections.abc import Hashable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

_MIN_TOKENS = 256
"""Shorter prompts are not kept: to hash and look up their blocks takes about as long."""
_MAX_BYTES = 8 << 20
"""Of the tokens of all that are kept."""
_TOKEN_BYTES = 4


class RecentPrompts(Generic[ItemT]):
    """Keeps an item for each leading block of the last prompts.

    Hundreds of requests often share their first thousands of tokens, and to compare these takes a
    hundredth of the time that it takes to hash and look up their blocks. Of prompts that agree in
    their first tokens, which tell most of them apart, the last one is kept.
    """

    def __init__(self, block_size: int) -> None:
        self._block_bytes = _TOKEN_BYTES * block_size
        self._key_bytes = _TOKEN_BYTES * _MIN_TOKENS
        self._prompts: dict[Hashable, tuple[bytes, list[ItemT]]] = {}
        self._num_bytes = 0

    def find(self, context: Hashable, tokens: bytes) -> list[ItemT]:
        """Returns the items of the leading blocks that the kept prompt has, too.

        Args:
            context: Only prompts of an equal one are compared.
            tokens: The prompt's tokens, as int32.
        """
        kept = self._prompts.get((context, tokens[: self._key_bytes]))
        if kept is None:
            return []
        kept_tokens, items = kept
        return items[: num_common_items(kept_tokens, tokens, self._block_bytes)]

    def keep(self, context: Hashable, tokens: bytes, items: list[ItemT]) -> None:
        """Keeps a prompt and the items of its leading blocks, which must not change any more."""
        if not self._key_bytes <= len(tokens) <= _MAX_BYTES:
            return
        key = context, tokens[: self._key_bytes]
        before, _ = self._prompts.pop(key, (b"", []))
        self._prompts[key] = tokens, items
        self._num_bytes += len(tokens) - len(before)
        while self._num_bytes > _MAX_BYTES:
            oldest, _ = self._prompts.pop(next(iter(self._prompts)))
            self._num_bytes -= len(oldest)


def num_common_items(first: bytes, second: bytes, item_bytes: int) -> int:
    """Returns how many leading items of so many bytes are the same."""
    low, high = 0, min(len(first), len(second)) // item_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[low * item_bytes : middle * item_bytes], low * item_bytes):
            low = middle
        else:
            high = middle - 1
    return low
