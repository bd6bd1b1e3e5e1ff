"""A client's request, and the deltas that answer it."""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protos.wire.sampling_params import SamplingParams
from router.types.engine_events import FinishReason, TokenLogprobs
from router.types.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from router.access.caller import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request of a client, as received."""

    request_id: str
    model: str
    """Empty means the only model served."""
    prompt: Prompt
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    """Texts that end the output."""
    include_stop_text: bool = False
    bad_words: tuple[str, ...] = ()
    """Texts that must not be generated."""
    fits_max_tokens: bool = False
    """Whether a `max_tokens` beyond the room behind the prompt is lowered to it, not refused."""
    n: int | None = None
    """Number of continuations; None is one."""
    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    """Seconds left of the client's deadline, or None."""
    traceparent: str = ""
    tracestate: str = ""
    num_bytes: int = 0
    """Size of the request message, which stays in memory until the request ends."""
    caller: "Caller | None" = None
    """Who asks; None if no API keys are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Where a request started, and with which seed and cached tokens."""

    request_id: str
    model: str
    engine: str
    """The engine's address."""
    num_prompt_tokens: int
    num_cached_tokens: int
    seed: int
    prompt_token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    """Typecode "i"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Why a request finished successfully, and its token counts."""

    reason: FinishReason
    stop_token_id: int | None
    num_prompt_tokens: int
    num_completion_tokens: int
    """Tokens delivered."""
    stop_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTokens:
    """Consecutive tokens with their logprobs, and the texts of all tokens named there."""

    token_ids: "Sequence[int]"
    logprobs: TokenLogprobs
    texts: "Mapping[int, tuple[str, bytes]]"
    """Text and bytes of each token by its ID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call of an answer."""

    index: int
    """Which call of the answer, from 0."""
    call_id: str = ""
    """In the first piece of each call only, as is the name."""
    name: str = ""
    arguments: str = ""
    """More of the arguments, as JSON text."""


@dataclass(slots=True, kw_only=True)
class GenerationDelta:
    """New output of one continuation; the first has `admission`, the last has `finish`.

    Nobody changes one. It is not frozen because that triples the time to make one, per message.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_ids: tuple[int, ...] = ()
    num_reasoning_tokens: int = 0
    """Of all tokens so far, those that were reasoning and that no delta before has counted."""
    admission: Admission | None = None
    finish: Finish | None = None
    index: int = 0
    logprobs: ScoredTokens | None = None
    """Of `token_ids`."""
    prompt_logprobs: ScoredTokens | None = None

    def joined(self, later: "GenerationDelta") -> "GenerationDelta":
        """Returns one delta for this and the next of the same continuation.

        Only one of them has logprobs, and only one those of the prompt.
        """
        return GenerationDelta(
            text=self.text + later.text,
            reasoning=self.reasoning + later.reasoning,
            tool_calls=self.tool_calls + later.tool_calls,
            token_ids=self.token_ids + later.token_ids,
            num_reasoning_tokens=self.num_reasoning_tokens + later.num_reasoning_tokens,
            admission=self.admission or later.admission,
            finish=later.finish,
            index=self.index,
            logprobs=later.logprobs if self.logprobs is None else self.logprobs,
            prompt_logprobs=later.prompt_logprobs
            if self.prompt_logprobs is None
            else self.prompt_logprobs,
        )
