"""Finds the texts of tokens in a text as the tokenizer does: the leftmost, there the longest."""

import re
from collections.abc import Collection, Iterator
from itertools import groupby, takewhile

_STRIDE = 1 << 16
"""Characters of one search, during which no other thread of the interpreter runs."""


class TokenPattern:
    """The texts of some tokens. Its methods may be called from several threads."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._longest = max(map(len, tokens), default=0)
        self._search = re.compile(_expression(sorted(set(tokens)))).search if tokens else None

    def spans(self, text: str, marker: str = "") -> Iterator[tuple[int, int]]:
        """Yields start and end of each token in a text that does not stand behind a marker."""
        position = 0
        while span := self.find(text, position):
            start, position = span
            if marker and start and text[start - 1] == marker:
                position = start + 1
            else:
                yield span

    def find(self, text: str, position: int = 0) -> tuple[int, int] | None:
        """Returns start and end of the first token from a position on."""
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
    """Returns a regular expression of sorted texts that never tries two of them at one place."""
    branches = []
    for _, group in groupby((text for text in texts if text), key=lambda text: text[0]):
        alike = list(group)
        # Of sorted texts, what the first and the last begin with all do.
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
