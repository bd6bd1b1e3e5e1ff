"""Takes the tool calls out of an answer, with their arguments as they come."""

from collections.abc import Collection

from router.text.parsers.json_scanner import JsonScanner
from router.text.parsers.tag_search import LAYOUT, TagSearch
from router.text.parsers.tool_format import CallStyle, Pattern, ToolFormat
from router.types.generation import ToolCallDelta

_MAX_CALLS = 128
"""Calls of one answer; further ones are content."""


class ToolCallParser:
    """Splits one answer into content and tool calls.

    A call begins when its name is known and its arguments begin. Until then it is held back, which
    is some hundred characters at most, and is content if it turns out to be no call. Arguments are
    given as they come; if they stop being JSON, the rest is content.

    Attributes:
        num_complete: Calls whose arguments are complete.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        """Starts an answer.

        Args:
            form: How the model writes calls.
            names: The functions that it may call.
        """
        self.num_complete = 0
        self._form = form
        self._names = names
        self._search = TagSearch([form.opening])
        self._buffer = ""
        self._content: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._num_calls = 0
        self._skips_space = False
        """Whether white space that comes next is layout."""
        self._opened = ""
        """What was read of a call before the buffer, and is content if it is none."""
        self._style: CallStyle | None = None
        """The style of the calls since the last opening."""
        self._scanner = JsonScanner()
        self._step = self._head if form.is_bare else self._text

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Returns the content and the parts of calls that a piece of text completes."""
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._taken()

    def flush(self) -> tuple[str, list[ToolCallDelta]]:
        """Returns what was held back when no more text comes."""
        if self._step == self._text:
            self._content.append(self._search.flush())
        # What is left of the end of a call is layout.
        elif self._step == self._head or (self._step == self._next and self._buffer.strip(LAYOUT)):
            self._content.append(self._opened + self._buffer)
        self._buffer = ""
        return self._taken()

    def _taken(self) -> tuple[str, list[ToolCallDelta]]:
        content, calls = "".join(self._content), self._calls
        if self._content:
            self._content = []
        if calls:
            self._calls = []
        return content, calls

    # Each step reads from the buffer, and returns whether another may go on.

    def _text(self) -> bool:
        text, self._buffer = self._buffer, ""
        if self._skips_space:
            text = text.lstrip(LAYOUT)
            if not text:
                return False
            self._skips_space = False
        found = self._search.push(text)
        self._content.append(found.text)
        if not found.tag:
            return False
        self._opened = found.space + found.tag
        self._buffer = found.rest
        self._step = self._head
        return True

    def _head(self) -> bool:
        may_match = False
        if self._num_calls < _MAX_CALLS:
            for style in self._form.styles:
                match = style.head.match(self._buffer, partial=True)
                if match is not None and not match.partial:
                    return self._begin(style, match["name"], match.end())
                may_match = may_match or match is not None
        return False if may_match else self._give_up()

    def _begin(self, style: CallStyle, name: str, end: int) -> bool:
        if self._form.is_bare and name not in self._names:
            return self._give_up()
        arguments = "" if style.has_arguments else "{}"
        self._calls.append(
            ToolCallDelta(
                index=self._num_calls,
                call_id=self._form.make_id(),
                name=name,
                arguments=arguments,
            )
        )
        self._num_calls += 1
        self._style = style
        self._opened = ""
        self._buffer = self._buffer[end:]
        if style.has_arguments:
            self._scanner = JsonScanner()
            self._step = self._arguments
        else:
            self.num_complete += 1
            self._step = self._tail
        return True

    def _arguments(self) -> bool:
        end = self._scanner.scan(self._buffer)
        arguments, self._buffer = self._buffer[:end], self._buffer[end:]
        if arguments:
            self._calls.append(ToolCallDelta(index=self._num_calls - 1, arguments=arguments))
        if self._scanner.is_broken:
            return self._give_up()
        if self._scanner.is_done:
            self.num_complete += 1
            self._step = self._tail
        return True

    def _tail(self) -> bool:
        assert self._style is not None
        if self._style.tail is not None:
            end = _end_of(self._style.tail, self._buffer)
            if end is None:
                return False
            if end < 0:
                return self._give_up()
            self._buffer = self._buffer[end:]
        if self._style.following is not None:
            self._step = self._next
        else:
            self._end_section()
        return True

    def _next(self) -> bool:
        style = self._style
        assert style is not None
        assert style.following is not None
        closing = -1 if style.closing is None else _end_of(style.closing, self._buffer)
        if closing is not None and closing >= 0:
            self._buffer = self._buffer[closing:]
            self._end_section()
            return True
        if self._num_calls < _MAX_CALLS:
            match = style.following.match(self._buffer, partial=True)
            if match is not None:
                if match.partial:
                    return False
                return self._begin(self._form.styles[0], match["name"], match.end())
        return False if closing is None else self._give_up()

    def _end_section(self) -> None:
        self._skips_space = True
        self._step = self._text

    def _give_up(self) -> bool:
        """Goes on behind what was an opening, if any, but begins no call."""
        self._content.append(self._opened)
        self._opened = ""
        self._step = self._text
        return True


def _end_of(pattern: Pattern, text: str) -> int | None:
    """Returns where a match ends, -1 if there can be none, or None if more text decides."""
    match = pattern.match(text, partial=True)
    if match is None:
        return -1
    return None if match.partial else match.end()
