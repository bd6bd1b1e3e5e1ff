"""Tells the reasoning of an answer from the rest of it."""

import enum
from dataclasses import dataclass

from router.text.parsers.tag_search import LAYOUT, MAX_SPACE, TagSearch


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a model marks its reasoning."""

    opening: str
    closing: str


class _Stage(enum.Enum):
    START = enum.auto()
    """Nothing has come yet; the opening tag counts only here."""
    LEADING_SPACE = enum.auto()
    INSIDE = enum.auto()
    TRAILING_SPACE = enum.auto()
    OVER = enum.auto()


class ReasoningParser:
    """Splits one answer; reasoning that does not end is reasoning up to the end."""

    def __init__(self, form: ReasoningFormat, *, is_open: bool = False) -> None:
        """Starts an answer.

        Args:
            form: How the model marks its reasoning.
            is_open: The prompt ends with the opening tag.
        """
        self._opening = form.opening
        self._search = TagSearch([form.closing])
        self._stage = _Stage.LEADING_SPACE if is_open else _Stage.START
        self._start = ""

    @property
    def is_over(self) -> bool:
        """Whether everything that is still to come is content."""
        return self._stage is _Stage.OVER

    def push(self, text: str) -> tuple[str, str]:
        """Returns the reasoning and the content that a piece of text completes."""
        reasoning = ""
        if self._stage is _Stage.START:
            text = self._begin(text)
        if self._stage is _Stage.LEADING_SPACE:
            text = text.lstrip(LAYOUT)
            if text:
                self._stage = _Stage.INSIDE
        if self._stage is _Stage.INSIDE:
            found = self._search.push(text)
            reasoning, text = found.text, found.rest
            if found.tag:
                self._stage = _Stage.TRAILING_SPACE
        if self._stage is _Stage.TRAILING_SPACE:
            text = text.lstrip(LAYOUT)
            if text:
                self._stage = _Stage.OVER
        return reasoning, text

    def flush(self) -> tuple[str, str]:
        """Returns what was held back when no more text comes: reasoning and content."""
        return self._search.flush(), self._start

    def _begin(self, text: str) -> str:
        text = self._start + text
        said = text.lstrip(LAYOUT)
        self._start = ""
        if len(text) - len(said) <= MAX_SPACE:
            if said.startswith(self._opening):
                self._stage = _Stage.LEADING_SPACE
                return said[len(self._opening) :]
            if self._opening.startswith(said):
                self._start = text
                return ""
        self._stage = _Stage.OVER
        return text
