"""What was found out about the blocks of the last prompts, for others that begin alike."""

from collections.abc import Hashable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

_MAX_PROMPTS = 16
"""Different beginnings that are kept."""
_TOKEN_BYTES = 4


class RecentPrompts(Generic[ItemT]):
    """Keeps an item for each leading block of the last prompts.

    Of prompts whose first blocks are equal, the last one is kept. Prompts of hundreds of requests
    often share their first thousands of tokens, and to compare these takes a hundredth of the time
    that it takes to hash and look up their blocks.
    """

    def __init__(self, block_size: int) -> None:
        self._block_bytes = _TOKEN_BYTES * block_size
        self._prompts: dict[Hashable, tuple[bytes, list[ItemT]]] = {}

    def find(self, context: Hashable, tokens: bytes) -> list[ItemT]:
        """Returns the items of leading blocks that a kept prompt begins with, too.

        Args:
            context: Only prompts of an equal one are compared.
            tokens: The prompt's tokens, as int32.
        """
        kept_tokens, items = self._prompts.get(self._key(context, tokens), (b"", []))
        return items[: num_common_items(kept_tokens, tokens, self._block_bytes)]

    def keep(self, context: Hashable, tokens: bytes, items: list[ItemT]) -> None:
        """Keeps the items of a prompt's leading blocks, as `find` shall return them."""
        key = self._key(context, tokens)
        self._prompts.pop(key, None)
        self._prompts[key] = tokens, items
        if len(self._prompts) > _MAX_PROMPTS:
            del self._prompts[next(iter(self._prompts))]

    def _key(self, context: Hashable, tokens: bytes) -> Hashable:
        return context, tokens[: self._block_bytes]


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
