"""The bound of a tokenization: a number of tokens, and until the caller is cancelled."""

from collections.abc import Callable
from dataclasses import dataclass

from protos.wire.reason import Reason
from router.errors import InvalidRequest


class Abandoned(Exception):
    """The caller was cancelled: the tokens are not needed any more."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Checked between two pieces of a text.

    Attributes:
        max_tokens: The most tokens that the model can hold; None means no bound.
        is_cancelled: Tells whether the caller was cancelled; None means never.
    """

    max_tokens: int | None = None
    is_cancelled: Callable[[], bool] | None = None

    def check(self, num_tokens: int) -> None:
        """Checks whether to go on with a text that has at least so many tokens.

        Raises:
            InvalidRequest: There are more tokens than the model can hold.
            Abandoned: The caller was cancelled.
        """
        if self.is_cancelled is not None and self.is_cancelled():
            raise Abandoned
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise too_many_tokens(self.max_tokens)


def too_many_tokens(max_model_len: int) -> InvalidRequest:
    """Returns the error for a prompt whose tokens were not counted to the end."""
    return InvalidRequest(
        f"the prompt has more than {max_model_len} tokens, over max_model_len {max_model_len}",
        {
            "num_prompt_tokens": f"more than {max_model_len}",
            "max_tokens": "",
            "max_model_len": str(max_model_len),
        },
        reason=Reason.PROMPT_TOO_LONG,
    )
