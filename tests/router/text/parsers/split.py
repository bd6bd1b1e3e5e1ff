"""Parses the same text in pieces of every kind."""

import re

from router.text.parsers.chat_parser import ChatParser
from router.text.parsers.reasoning_parser import ReasoningParser
from router.text.parsers.registry import REASONING_FORMATS
from router.text.parsers.tool_call_parser import ToolCallParser
from router.text.parsers.tool_format import TOOL_FORMATS

THINK = REASONING_FORMATS["think"]
NAMES = ("get_weather", "f")


def parser_of(tools=None, reasoning=None, *, is_open=False):
    return ChatParser(
        ReasoningParser(reasoning, is_open=is_open) if reasoning else None,
        ToolCallParser(TOOL_FORMATS[tools], NAMES) if tools else None,
    )


class Answer:
    """What a client joins of the pieces; calls are [name, arguments]."""

    def __init__(self, parser, pieces):
        self.reasoning = self.content = ""
        self.calls = []
        self.ids = []
        for piece in pieces:
            self._add(parser.push(piece))
        self._add(parser.finish())
        self.has_calls = parser.has_calls

    def _add(self, parsed):
        self.reasoning += parsed.reasoning
        self.content += parsed.content
        for delta in parsed.tool_calls:
            if delta.name:
                assert delta.index == len(self.calls), "calls come in order"
                self.calls.append([delta.name, ""])
                self.ids.append(delta.call_id)
            else:
                assert delta.call_id == ""
                assert delta.arguments, "no empty piece"
            assert delta.index == len(self.calls) - 1
            self.calls[-1][1] += delta.arguments

    @property
    def parts(self):
        return self.reasoning, self.content, self.calls, self.has_calls


def parse(text, tools=None, reasoning=None, *, is_open=False):
    """The answer of a text as a whole, which is that of every way to split it in two."""
    whole = Answer(parser_of(tools, reasoning, is_open=is_open), [text])
    singly = Answer(parser_of(tools, reasoning, is_open=is_open), text)
    assert singly.parts == whole.parts
    for cut in range(len(text) + 1):
        pieces = [text[:cut], text[cut:]]
        halves = Answer(parser_of(tools, reasoning, is_open=is_open), pieces)
        assert halves.parts == whole.parts, pieces
    return whole


def visible(text):
    """The characters of a text without white space."""
    return re.sub(r"\s", "", text)
