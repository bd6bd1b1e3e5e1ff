"""Parses one answer of a chat."""

from typing import NamedTuple

from router.text.parsers.reasoning_parser import ReasoningParser
from router.text.parsers.tool_call_parser import ToolCallParser
from router.types.generation import ToolCallDelta


class Parsed(NamedTuple):
    """What a piece of an answer completes."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __add__(self, later: "Parsed") -> "Parsed":  # type: ignore[override]
        """Returns what this and the next piece complete together."""
        return Parsed(
            self.reasoning + later.reasoning,
            self.content + later.content,
            self.tool_calls + later.tool_calls,
        )


class ChatParser:
    """Tells reasoning, content and tool calls of one answer apart, in this order."""

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolCallParser | None) -> None:
        """Starts an answer; a parser that is None finds nothing of its kind."""
        self._reasoning = reasoning
        self._tools = tools

    @property
    def may_reason(self) -> bool:
        """Whether what comes next may be reasoning."""
        return self._reasoning is not None

    @property
    def has_calls(self) -> bool:
        """Whether a tool call is complete."""
        return self._tools is not None and self._tools.num_complete > 0

    def push(self, text: str) -> Parsed:
        """Returns what a piece of text completes."""
        reasoning, content = "", text
        if self._reasoning is not None:
            reasoning, content = self._reasoning.push(text)
            if self._reasoning.is_over:
                self._reasoning = None
        if self._tools is None or not content:
            return Parsed(reasoning, content)
        content, calls = self._tools.push(content)
        return Parsed(reasoning, content, tuple(calls))

    def finish(self, text: str = "") -> Parsed:
        """Returns what the last piece of text completes, and all that was held back."""
        reasoning, content, calls = self.push(text)
        if self._reasoning is not None:
            rest, text = self._reasoning.flush()
            reasoning += rest
        else:
            text = ""
        if self._tools is None:
            return Parsed(reasoning, content + text, calls)
        more, new = self._tools.push(text)
        rest, last = self._tools.flush()
        return Parsed(reasoning, content + more + rest, (*calls, *new, *last))
