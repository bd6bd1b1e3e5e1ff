"""Finds token texts as a tokenizer does: the leftmost match, and there the longest."""

import re
from collections.abc import Collection, Iterator
from itertools import groupby, takewhile

_STRIDE = 1 << 16
"""Characters per search: the search holds the interpreter lock, so other threads wait."""


class TokenPattern:
    """Searches for the texts of tokens. Its methods may be called from several threads."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._longest = max(map(len, tokens), default=0)
        self._search = re.compile(_expression(sorted(set(tokens)))).search if tokens else None

    def spans(self, text: str, marker: str = "") -> Iterator[tuple[int, int]]:
        """Yields start and end of each token in a text that has no marker before it."""
        position = 0
        while span := self.find(text, position):
            start, position = span
            if marker and start and text[start - 1] == marker:
                position = start + 1
            else:
                yield span

    def find(self, text: str, position: int = 0) -> tuple[int, int] | None:
        """Returns start and end of the first token at or after a position."""
        if self._search is None:
            return None
        while position < len(text):
            stop = position + _STRIDE
            match = self._search(text, position, stop + self._longest)
            if match is not None and match.start() < stop:
                return match.span()
            position = stop
        return None


def _expression(texts: list[str]) -> str:
    """Returns a regular expression of sorted texts that never tries two at one position."""
    branches = []
    for _, group in groupby((text for text in texts if text), key=lambda text: text[0]):
        alike = list(group)
        # The texts are sorted: a prefix of the first and the last is a prefix of all.
        both = zip(alike[0], alike[-1], strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        rest = _expression([text[length:] for text in alike])
        branches.append(re.escape(alike[0][:length]) + rest)
    if not branches:
        return ""
    is_optional = not texts[0]
    if len(branches) == 1 and not is_optional:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if is_optional else ''}"
