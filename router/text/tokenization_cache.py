"""Caches the token IDs of beginnings of conversations, so that a longer one reuses them."""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TypeAlias

import xxhash

from router.text.token_budget import TokenBudget
from router.text.token_pattern import TokenPattern

_MAX_BYTES = 64 << 20
_ENTRY_BYTES = 200
"""Size of an entry without its tokens: key, array and place in the order."""


Encode: TypeAlias = Callable[[str, str, TokenBudget], "array[int]"]
"""Returns the token IDs of a text; a marker before a special token makes it plain text."""


class TokenizationCache:
    """Keeps the most recent token IDs of texts up to their last special token.

    A special token cuts a text before any other step, so the tokens of a text are those of its
    parts: the part before the cut is looked up, the part after it is encoded. The methods may be
    called from several threads.
    """

    def __init__(
        self, encode: Encode, cutting_tokens: Collection[str], max_bytes: int = _MAX_BYTES
    ) -> None:
        """Keeps at most `max_bytes`; each of the special tokens given cuts every text."""
        self._encode = encode
        self._max_bytes = max_bytes
        self._cut = TokenPattern(cutting_tokens)
        self._entries: OrderedDict[bytes, array[int]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes in use, apart from the interpreter's own overhead."""
        return self._num_bytes

    def encode(self, text: str, marker: str, budget: TokenBudget) -> "array[int]":
        """Returns the token IDs of a text, typecode "i".

        Args:
            text: What to encode.
            marker: Stands before each special token that is plain text; "" if there is none.
            budget: The bound of the work.

        Raises:
            InvalidRequest: There are more tokens than the budget allows.
            Abandoned: The budget was cancelled.
        """
        cuts = self._cuts_of(text, marker, budget)
        if not cuts:
            return self._encode(text, marker, budget)
        start, known = self._longest(cuts)
        end, key = cuts[-1]
        head = known + self._encode(text[start:end], marker, budget) if start < end else known
        budget.check(len(head))
        self._keep(key, head)
        return head + self._encode(text[end:], marker, budget) if end < len(text) else head[:]

    def _cuts_of(self, text: str, marker: str, budget: TokenBudget) -> list[tuple[int, bytes]]:
        """Returns the end of each special token, with a digest of all text up to it."""
        # The marker is part of the digest: marked texts have other tokens.
        hasher = xxhash.xxh3_128(marker.encode())
        cuts = []
        start = 0
        for _, end in self._cut.spans(text, marker):
            hasher.update(text[start:end].encode("utf-8", "surrogatepass"))
            start = end
            cuts.append((end, hasher.digest()))
            budget.check(len(cuts))
        return cuts

    def _longest(self, cuts: list[tuple[int, bytes]]) -> tuple[int, "array[int]"]:
        with self._lock:
            for end, key in reversed(cuts):
                if key in self._entries:
                    self._entries.move_to_end(key)
                    return end, self._entries[key]
        return 0, array("i")

    def _keep(self, key: bytes, token_ids: "array[int]") -> None:
        size = _size(token_ids)
        if size > self._max_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = token_ids
            self._num_bytes += size
            while self._num_bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._num_bytes -= _size(dropped)


def _size(token_ids: "array[int]") -> int:
    return _ENTRY_BYTES + token_ids.itemsize * len(token_ids)
