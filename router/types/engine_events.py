"""What an engine says about one request, and the request that it got.

Times are in seconds.
"""

import enum
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protos.wire.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.types.engine_state import ModelInfo


class FinishReason(enum.Enum):
    """Why a request finished successfully."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    """As STOP, of an answer with a complete tool call; no engine reports it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """One request after tokenization."""

    request_id: str
    model: str
    prompt_token_ids: "array[int]"
    """Typecode "i"."""
    model_info: "ModelInfo | None" = None
    """The model that the prompt was tokenized for; None means any model of that name."""
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    resume_token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens that another engine has already generated; typecode "i"."""
    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    """Seconds left of the client's deadline, or None."""
    traceparent: str = ""
    tracestate: str = ""
    pipeline_seconds: float = 0.0
    """What the router has spent on the request before an engine is chosen."""

    @property
    def num_known_tokens(self) -> int:
        """Tokens of the prompt plus those already generated."""
        return len(self.prompt_token_ids) + len(self.resume_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An engine scheduled the request."""

    engine: str
    """The engine's address."""
    num_cached_tokens: int
    seed: int
    is_followed: bool = False
    """Whether the next event comes at once, so that one message can tell both."""

    def followed(self) -> "Admitted":
        """Returns it with `is_followed`."""
        return Admitted(
            engine=self.engine,
            num_cached_tokens=self.num_cached_tokens,
            seed=self.seed,
            is_followed=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Logprobs of consecutive tokens, in parallel arrays."""

    logprobs: "Sequence[float]"
    """[num_tokens] of the tokens themselves."""
    top_token_ids: "Sequence[int]" = ()
    """[num_tokens * num_top] the likeliest tokens at each position, the likeliest first."""
    top_logprobs: "Sequence[float]" = ()
    """[num_tokens * num_top] of these."""

    @property
    def num_top(self) -> int:
        """Likeliest tokens at each position."""
        return len(self.top_token_ids) // len(self.logprobs) if self.logprobs else 0

    def part(self, start: int, stop: int) -> "TokenLogprobs":
        """Returns those of some of the tokens."""
        num_top = self.num_top
        return TokenLogprobs(
            logprobs=self.logprobs[start:stop],
            top_token_ids=self.top_token_ids[start * num_top : stop * num_top],
            top_logprobs=self.top_logprobs[start * num_top : stop * num_top],
        )


@dataclass(slots=True, kw_only=True)
class Tokens:
    """New tokens of the request.

    Nobody changes one. It is not frozen because that triples the time to make one, per message.
    """

    token_ids: list[int]
    logprobs: TokenLogprobs | None = None
    """Of these tokens; None unless the request asks for them."""
    is_last: bool = False
    """Whether `Finished` comes at once, so that one message can tell both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """Logprobs of some consecutive tokens of the prompt; all come before the first new token."""

    first_position: int
    """The position of the first of them in the prompt, at least 1."""
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The request finished successfully; nothing follows."""

    reason: FinishReason
    stop_token_id: int | None = None


EngineEvent = Admitted | PromptLogprobs | Tokens | Finished
