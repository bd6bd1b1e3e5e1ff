"""How far a tokenization may go: up to as many tokens as can be used, for as long as one waits."""

from collections.abc import Callable
from dataclasses import dataclass

from protos.wire.reason import Reason
from router.errors import InvalidRequest


class Abandoned(Exception):
    """Nobody waits for the tokens any more."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Asked between two pieces of a text whether to go on.

    Attributes:
        max_tokens: Tokens that the model can hold; None is no bound.
        is_cancelled: Tells that nobody waits any more; None is that somebody does.
    """

    max_tokens: int | None = None
    is_cancelled: Callable[[], bool] | None = None

    def check(self, num_tokens: int) -> None:
        """Returns if a text that has at least so many tokens is worth more work.

        Raises:
            InvalidRequest: They are more than the model can hold.
            Abandoned: Nobody waits for them.
        """
        if self.is_cancelled is not None and self.is_cancelled():
            raise Abandoned
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise too_many_tokens(self.max_tokens)


def too_many_tokens(max_model_len: int) -> InvalidRequest:
    """Returns the error of a prompt whose tokens were not counted to the end."""
    return InvalidRequest(
        f"prompt of more than {max_model_len} tokens, over max_model_len {max_model_len}",
        {
            "num_prompt_tokens": f"more than {max_model_len}",
            "max_tokens": "",
            "max_model_len": str(max_model_len),
        },
        reason=Reason.PROMPT_TOO_LONG,
    )
