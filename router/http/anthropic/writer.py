"""An answer as the events of Anthropic's API."""

from router.http.answers import event, quoted
from router.http.anthropic.errors import anthropic_error
from router.http.anthropic.message import first_block, message_head, stop_fields, usage
from router.http.anthropic.pieces import TEXT, THINKING, Piece, Place, pieces
from router.http.errors import ErrorForm, Refusal
from router.types.generation import Admission, Finish, GenerationDelta

_DELTA = (
    'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{},'
    '"delta":{{"type":"{}_delta","{}":'
)
_DELTA_END = b"}}\n\n"


_PING = event({"type": "ping"}, "ping")


class MessageWriter:
    """Writes one answer."""

    keep_alive = _PING

    def __init__(self, *, max_tokens: int, shows_thinking: bool) -> None:
        """Starts before the first delta.

        Args:
            max_tokens: The most tokens that were asked for.
            shows_thinking: Whether the message has the text of its thinking.
        """
        self._max_tokens = max_tokens
        self.error_form: ErrorForm = anthropic_error
        self._shows_thinking = shows_thinking
        self._place: Place = None
        self._num_blocks = 0
        self._delta_begin = b""
        """What stands before the content in each delta of the latest block."""
        self._admission: Admission | None = None
        self._finish: Finish | None = None

    def begin(self) -> bytes:
        """Returns the start of the message; the first delta must have been written."""
        assert self._admission is not None, "the first delta has it"
        message = message_head(self._admission)
        return event({"type": "message_start", "message": message}, "message_start") + _PING

    def delta(self, delta: GenerationDelta) -> bytes:
        """Returns the events of a delta, which may be none."""
        if self._place == TEXT and not (delta.reasoning or delta.tool_calls or delta.finish):
            return self._more(delta.text) if delta.text else b""
        self._admission = self._admission or delta.admission
        self._finish = delta.finish
        parts = []
        for piece in pieces(delta, self._place):
            if piece.place != self._place:
                parts += [self._end_block(), self._begin_block(piece)]
            if piece.text and (piece.place != THINKING or self._shows_thinking):
                parts.append(self._more(piece.text))
        return b"".join(parts)

    def end(self) -> bytes:
        """Returns the end of the message."""
        assert self._admission is not None, "the first delta has it"
        assert self._finish is not None, "the last delta has it"
        end = {
            "type": "message_delta",
            "delta": stop_fields(self._finish, self._max_tokens),
            "usage": usage(self._admission, self._finish.num_completion_tokens),
        }
        stop = event({"type": "message_stop"}, "message_stop")
        return self._end_block() + event(end, "message_delta") + stop

    def error(self, refusal: Refusal) -> bytes:
        """Returns the event of an error, with which the stream ends."""
        return event(anthropic_error(refusal), "error")

    def _begin_block(self, piece: Piece) -> bytes:
        self._place = piece.place
        block = first_block(piece)
        kind, name = {
            "text": ("text", "text"),
            "thinking": ("thinking", "thinking"),
            "tool_use": ("input_json", "partial_json"),
        }[block["type"]]
        index = self._num_blocks
        self._num_blocks += 1
        self._delta_begin = _DELTA.format(index, kind, name).encode()
        start = {"type": "content_block_start", "index": index, "content_block": block}
        return event(start, "content_block_start")

    def _more(self, text: str) -> bytes:
        return self._delta_begin + quoted(text) + _DELTA_END

    def _end_block(self) -> bytes:
        if self._place is None:
            return b""
        index, signature = self._num_blocks - 1, b""
        if self._place == THINKING:
            begin = _DELTA.format(index, "signature", "signature").encode()
            signature = begin + b'""' + _DELTA_END
        stop = {"type": "content_block_stop", "index": index}
        return signature + event(stop, "content_block_stop")
