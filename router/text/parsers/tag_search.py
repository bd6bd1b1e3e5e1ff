"""Finds tags in a text that comes in pieces."""

import re
from collections.abc import Sequence
from typing import NamedTuple

LAYOUT = " \t\r\n"
"""White space, which next to a tag is no part of the text."""
MAX_SPACE = 256
"""White space held back because a tag may follow; of more, the first is text."""


class Found(NamedTuple):
    """What a piece of text brought.

    Attributes:
        text: Text that is certainly none of the tag.
        space: The white space between this text and the tag.
        tag: The tag, or "" if there is none yet.
        rest: What follows the tag.
    """

    text: str
    space: str = ""
    tag: str = ""
    rest: str = ""


class TagSearch:
    """Holds back only what may still become a tag, or the white space before one."""

    def __init__(self, tags: Sequence[str]) -> None:
        """Searches for any of some tags, none of which begins with another."""
        self._tags = tuple(tags)
        self._pattern = re.compile("|".join(map(re.escape, tags)))
        self._held = ""

    def push(self, text: str) -> Found:
        """Returns the text that is complete, up to the first tag."""
        if self._held:
            text = self._held + text
        if match := self._pattern.search(text):
            self._held = ""
            start = _start_of_space(text, match.start())
            return Found(text[:start], text[start : match.start()], match[0], text[match.end() :])
        start = _start_of_space(text, min(_start_of_part(text, tag) for tag in self._tags))
        self._held = text[start:]
        return Found(text[:start])

    def flush(self) -> str:
        """Returns the text held back when no more comes."""
        held, self._held = self._held, ""
        return held


def _start_of_part(text: str, tag: str) -> int:
    """Returns where a part of the tag begins that the text ends with; its end if there is none."""
    start = text.find(tag[0], max(0, len(text) - len(tag) + 1))
    while start >= 0:
        if tag.startswith(text[start:]):
            return start
        start = text.find(tag[0], start + 1)
    return len(text)


def _start_of_space(text: str, end: int) -> int:
    tail = text[max(0, end - MAX_SPACE) : end]
    return end - len(tail) + len(tail.rstrip(LAYOUT))
