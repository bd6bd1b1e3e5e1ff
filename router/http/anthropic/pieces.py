"""The pieces of an answer, in the order in which its blocks have them."""

from collections.abc import Iterator
from typing import NamedTuple

from router.types.generation import GenerationDelta, ToolCallDelta

THINKING, TEXT = "thinking", "text"

Place = str | int | None
"""Which block: `THINKING`, `TEXT`, the index of a call, or None for no block."""


class Piece(NamedTuple):
    """More of one block."""

    place: Place
    text: str
    call: ToolCallDelta | None = None


def pieces(delta: GenerationDelta, place: Place) -> Iterator[Piece]:
    """Yields what a delta adds to an answer whose latest block is `place`.

    A delta has reasoning, text and calls in this order, but what goes on with a call comes first.
    """
    calls = delta.tool_calls
    for call in calls:
        if call.index == place:
            yield Piece(call.index, call.arguments, call)
    if delta.reasoning:
        yield Piece(THINKING, delta.reasoning)
    if delta.text:
        yield Piece(TEXT, delta.text)
    for call in calls:
        if call.index != place:
            yield Piece(call.index, call.arguments, call)
