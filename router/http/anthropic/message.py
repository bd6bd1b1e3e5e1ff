"""An answer as one message."""

import json
import sys
from typing import Any

from pydantic_core import from_json

from router.http.anthropic.pieces import TEXT, THINKING, Piece, Place, pieces
from router.types.engine_events import FinishReason
from router.types.generation import Admission, Finish, GenerationDelta

_STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
}

_LARGEST = {"Infinity": sys.float_info.max, "-Infinity": -sys.float_info.max}


def message_head(admission: Admission) -> dict[str, Any]:
    """Returns a message that has no content yet."""
    return {
        "id": f"msg_{admission.request_id}",
        "type": "message",
        "role": "assistant",
        "model": admission.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(admission, 0),
    }


def usage(admission: Admission, num_output_tokens: int) -> dict[str, int]:
    """Returns how many tokens there were; those of the input do not include the cached ones."""
    return {
        "input_tokens": admission.num_prompt_tokens - admission.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": admission.num_cached_tokens,
        "output_tokens": num_output_tokens,
    }


def stop_fields(finish: Finish, max_tokens: int) -> dict[str, str | None]:
    """Returns why a message ended that was asked to have at most so many tokens."""
    reason = _STOP_REASONS[finish.reason]
    if reason == "max_tokens" and finish.num_completion_tokens < max_tokens:
        reason = "model_context_window_exceeded"
    if reason == "end_turn" and finish.stop_text is not None:
        reason = "stop_sequence"
    is_text = reason == "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finish.stop_text if is_text else None}


def first_block(piece: Piece) -> dict[str, Any]:
    """Returns the block that begins with a piece, without its content."""
    if piece.place == TEXT:
        return {"type": "text", "text": ""}
    if piece.place == THINKING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    assert piece.call is not None, "all other blocks are calls"
    return {"type": "tool_use", "id": piece.call.call_id, "name": piece.call.name, "input": {}}


class MessageReader:
    """Collects the deltas of one answer."""

    def __init__(self, *, max_tokens: int, shows_thinking: bool) -> None:
        """Starts without any.

        Args:
            max_tokens: The most tokens that were asked for.
            shows_thinking: Whether the message has the text of its thinking.
        """
        self._max_tokens = max_tokens
        self._shows_thinking = shows_thinking
        self._place: Place = None
        self._blocks: list[tuple[dict[str, Any], list[str]]] = []
        """With the texts of their contents."""
        self._admission: Admission | None = None
        self._finish: Finish | None = None

    def read(self, delta: GenerationDelta) -> None:
        """Takes the next delta."""
        self._admission = self._admission or delta.admission
        self._finish = delta.finish
        for piece in pieces(delta, self._place):
            if piece.place != self._place:
                self._place = piece.place
                self._blocks.append((first_block(piece), []))
            self._blocks[-1][1].append(piece.text)

    def message(self) -> dict[str, Any]:
        """Returns the message; there must have been all deltas."""
        assert self._admission is not None, "the first delta has it"
        assert self._finish is not None, "the last delta has it"
        return {
            **message_head(self._admission),
            "content": [self._block(block, "".join(texts)) for block, texts in self._blocks],
            **stop_fields(self._finish, self._max_tokens),
            "usage": usage(self._admission, self._finish.num_completion_tokens),
        }

    def _block(self, block: dict[str, Any], content: str) -> dict[str, Any]:
        if block["type"] == "tool_use":
            return {**block, "input": _input(content)}
        if block["type"] == "thinking" and not self._shows_thinking:
            return block
        return {**block, block["type"]: content}


def _input(text: str) -> dict[str, Any]:
    """Reads the arguments of a call, which are not complete if the answer was too long."""
    if not text:
        return {}
    value = from_json(text, allow_partial=True)
    # A number such as 1e999 is read as infinity, which JSON has not.
    arguments: dict[str, Any] = json.loads(json.dumps(value), parse_constant=_LARGEST.get)
    return arguments
