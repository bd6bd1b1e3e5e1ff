"""Which logprobs an engine may send; anything else breaks the contract."""

import math
from array import array
from collections.abc import Sequence

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.token_ids import read_token_ids
from router.engines.connection_loss import violation
from router.types.engine_events import PromptLogprobs, TokenLogprobs

_MAX_LOGPROB = 0.001
"""A logprob is not positive, except for rounding; the contract states this bound."""


def read_logprobs(
    handle: int, message: engine_pb2.Logprobs, count: int, num_top: int, vocab_size: int
) -> TokenLogprobs:
    """Returns checked logprobs, as arrays.

    Args:
        handle: The request.
        message: Its logprobs.
        count: How many tokens they are for.
        num_top: Candidates at each position.
        vocab_size: Token IDs are smaller than this.

    Raises:
        ConnectionLost: They break the contract (VIOLATION).
    """
    # Lengths first: what is too long is not copied.
    if len(message.logprobs) != count:
        raise violation(f"request {handle} got {len(message.logprobs)} logprobs for {count} tokens")
    num_candidates = count * num_top
    for field in ("top_token_ids", "top_logprobs"):
        length = len(getattr(message, field))
        if length != num_candidates:
            raise violation(
                f"request {handle} got {length} {field} for {count} tokens, not {num_candidates}, "
                f"that is {num_top} for each"
            )
    top_token_ids = read_token_ids(message, "top_token_ids")
    if top_token_ids and max(top_token_ids) >= vocab_size:
        raise violation(
            f"request {handle} got candidate {max(top_token_ids)}, outside 0 to {vocab_size - 1}"
        )
    return TokenLogprobs(
        logprobs=_checked(handle, message.logprobs[:]),
        top_token_ids=top_token_ids,
        top_logprobs=_checked(handle, message.top_logprobs[:]),
    )


def _checked(handle: int, values: Sequence[float]) -> "array[float]":
    # NaN makes the sum NaN; -infinity, which is allowed, does not.
    if values and not (max(values) <= _MAX_LOGPROB and not math.isnan(sum(values))):
        wrong = next(value for value in values if not value <= _MAX_LOGPROB)
        raise violation(f"request {handle} got logprob {wrong:.6g}, outside -infinity to 0")
    return array("f", values)


class PromptContract:
    """The logprobs of one prompt that the engine still has to send.

    Args:
        num_prompt_tokens: Tokens of the prompt, of which the first has no logprob.
        num_top: Candidates at each position.
        vocab_size: Token IDs are smaller than this.
    """

    __slots__ = ("_next_position", "_num_prompt_tokens", "_num_top", "_vocab_size")

    def __init__(self, num_prompt_tokens: int, num_top: int, vocab_size: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_top = num_top
        self._vocab_size = vocab_size
        self._next_position = 1

    @property
    def num_left(self) -> int:
        """Positions whose logprobs have not come yet."""
        return self._num_prompt_tokens - self._next_position

    def take(self, handle: int, message: engine_pb2.PromptLogprobs) -> PromptLogprobs:
        """Returns the next logprobs, checked.

        Raises:
            ConnectionLost: They break the contract (VIOLATION).
        """
        first, count = message.first_position, len(message.logprobs.logprobs)
        if first != self._next_position:
            raise violation(
                f"the logprobs of the prompt of request {handle} begin at position {first}, "
                f"not {self._next_position}"
            )
        if not 1 <= count <= self.num_left:
            raise violation(
                f"request {handle} got logprobs of {count} tokens of its prompt, "
                f"outside 1 to {self.num_left}"
            )
        logprobs = read_logprobs(handle, message.logprobs, count, self._num_top, self._vocab_size)
        self._next_position += count
        return PromptLogprobs(first_position=first, logprobs=logprobs)
