"""Token IDs of the beginnings of conversations, so that one that grows is not tokenized anew."""

import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable

import xxhash

_MAX_BYTES = 64 << 20
_ENTRY_BYTES = 200
"""Of an entry without its tokens: key, array and place in the order."""
# Behind a special token, each of these would show whether the tokenizer looks back over it.
_PROBES = ("word", " word", "\nword", "word" * 3, "é", "7")


class TokenizationCache:
    """Keeps the tokens of texts up to their last special token, the latest of them.

    A special token cuts a text before anything else is done with it, so the tokens of a whole text
    are those of its parts: what stands before the cut is looked up, what stands behind is encoded.
    Only special tokens of which this is true are used; that is tried out once. Its methods may be
    called from several threads.
    """

    def __init__(
        self,
        encode: Callable[[str], "array[int]"],
        special_tokens: Iterable[str],
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        """Keeps no more than `max_bytes`; `encode` returns the token IDs of a text."""
        self._encode = encode
        self._max_bytes = max_bytes
        cuts = [token for token in special_tokens if _cuts(encode, token)]
        self._cut = re.compile("|".join(map(re.escape, cuts))) if cuts else None
        self._entries: OrderedDict[bytes, array[int]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes in use, to within the interpreter's own."""
        return self._num_bytes

    def encode(self, text: str) -> "array[int]":
        """Returns the token IDs of a text, typecode "i"."""
        if self._cut is None:
            return self._encode(text)
        cuts = self._cuts_of(text)
        if not cuts:
            return self._encode(text)
        start, known = self._longest(cuts)
        end, key = cuts[-1]
        head = known + self._encode(text[start:end]) if start < end else known
        self._keep(key, head)
        return head + self._encode(text[end:]) if end < len(text) else head[:]

    def _cuts_of(self, text: str) -> list[tuple[int, bytes]]:
        """Returns where special tokens end, with a digest of all that stands before."""
        assert self._cut is not None
        hasher = xxhash.xxh3_128()
        cuts = []
        start = 0
        for match in self._cut.finditer(text):
            hasher.update(text[start : match.end()].encode("utf-8", "surrogatepass"))
            start = match.end()
            cuts.append((start, hasher.digest()))
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


def _cuts(encode: Callable[[str], "array[int]"], token: str) -> bool:
    """Tries out whether a text's tokens are those before and those behind this special token."""
    head = encode(f"word{token}")
    return all(encode(f"word{token}{probe}") == head + encode(probe) for probe in _PROBES)
