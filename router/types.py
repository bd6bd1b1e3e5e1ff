"""The data types of the router: prompts, requests in token IDs, engine events and engine state.

Counts are of tokens, requests or blocks, as the name says. Times are in seconds.
"""

import enum
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from protos.wire.sampling_params import BASIC_PARAMS, SamplingParams, demanded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class FinishReason(enum.Enum):
    """Why a request finished successfully."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    """As STOP, of an answer with a complete tool call; no engine reports it."""


class EngineState(enum.Enum):
    """Whether the router sends requests to an engine."""

    CONNECTING = "connecting"
    SERVING = "serving"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """New tokens of the request."""

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


class Demands(NamedTuple):
    """What a request needs that not every engine has."""

    params: frozenset[str]
    """Names of `SamplingParams`."""
    num_logprobs: int = 0
    """At each position, beside that of the token itself."""

    @classmethod
    def of(cls, params: SamplingParams) -> "Demands | None":
        """Returns what these parameters demand; None if every engine supports them."""
        names = demanded(params)
        if not names:
            return None
        return cls(names, max(params.logprobs or 0, params.prompt_logprobs or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine reports about the model it serves."""

    name: str
    architecture: str
    fingerprint: str
    """Root of all block hashes; engines with equal fingerprints are interchangeable."""
    vocab_size: int
    max_model_len: int
    block_size: int
    block_hash_scheme: str
    eos_token_ids: frozenset[int]
    tokenizer_sha256: str
    epoch: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    """The most tokens of one step; 0 means unknown."""
    supported_params: frozenset[str] = BASIC_PARAMS
    """Fields of `SamplingParams` that the engine supports."""
    default_sampling_params: SamplingParams = field(default_factory=SamplingParams)
    """Values for parameters that a request leaves unset."""
    max_logprobs: int = 0
    """The most candidates whose logprobs a request may ask for at each position."""

    @property
    def identity(self) -> tuple[str, str, str, int, int]:
        """Engines with equal identities can serve the same requests."""
        return (
            self.name,
            self.fingerprint,
            self.tokenizer_sha256,
            self.block_size,
            self.vocab_size,
        )

    def supports(self, demands: "Demands") -> bool:
        """Whether the engine supports what a request needs."""
        return demands.params <= self.supported_params and demands.num_logprobs <= self.max_logprobs

    @property
    def max_sequence_len(self) -> int:
        """The most tokens of prompt and output that the engine accepts, by its own rule."""
        return min(self.max_model_len, self.num_blocks * self.block_size + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """The load that an engine reports."""

    state: EngineState = EngineState.CONNECTING
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_prefill_tokens: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    prefill_tokens_per_second: float = 0.0
    """Measured; 0 before the first measurement."""
    decode_tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUpdate:
    """One message of an engine's WatchCache: part of a snapshot, or a delta."""

    epoch: int
    """Tells restarts of the engine apart; never 0."""
    sequence_number: int
    """Number of the last change included; equal in all parts of a snapshot."""
    stored: "Sequence[int]"
    """Low 64 bits of block hashes."""
    removed: "Sequence[int]" = ()
    is_snapshot: bool = False
    is_first: bool = False
    """A snapshot begins: discard all earlier state."""
    is_last: bool = False
    """The snapshot is complete."""
    part_number: int = 0
    """Position of the part in its snapshot, from 1; 0 if the engine does not number parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """The state of one engine, frozen for one placement or one listing."""

    address: str
    state: EngineState
    model: ModelInfo | None
    load: EngineLoad
    num_in_flight: int
    """Requests of this router in progress on it."""
    num_in_flight_prefill_tokens: int
    """Uncached prompt tokens that this router sent and the engine has not yet reported."""
    num_indexed_blocks: int
    cache_event_age: float | None = None
    """Seconds since its last cache event; None before the first."""
    detail: str = ""
    """Why it is not serving, for people to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """One model that requests can name."""

    info: ModelInfo
    num_serving_engines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Text to tokenize as it is."""

    text: str
    add_special_tokens: bool = True
    """Adds what the tokenizer adds around a text."""
    field: str = "text"
    """What the client calls it, for errors."""


class ToolChoice(enum.Enum):
    """Whether a model calls functions."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: "Mapping[str, object] | None" = None
    """The JSON schema of its arguments; None means that it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call in an assistant's message."""

    call_id: str
    name: str
    arguments: "Mapping[str, object]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str
    parts: tuple[str, ...] = ()
    """The content in several parts, instead of `content`."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the message has a role and a text only."""
        return not (
            self.parts or self.tool_calls or self.tool_call_id or self.name or self.reasoning
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    function_name: str = ""
    """The one function that must be called, once; empty means any, as `tool_choice` says."""
    parallel_calls: bool = True
    """Whether an answer may have more than one call; if not, it ends with the first."""
    template_kwargs: "Mapping[str, object]" = field(default_factory=dict)
    """More variables for the template."""
    add_generation_prompt: bool | None = None
    """None means unless the final message is continued."""
    continue_final_message: bool = False
    raw_output: bool = False
    """Leaves reasoning and tool calls in the text of the answer."""
    num_json_bytes: int = 0
    """Size of all that was read from JSON."""

    @property
    def shown_tools(self) -> tuple[Tool, ...]:
        """The tools that the model gets to know."""
        return () if self.tool_choice is ToolChoice.NONE else self.tools

    @property
    def must_call(self) -> bool:
        """Whether the model has to call a function."""
        return bool(self.function_name) or self.tool_choice is ToolChoice.REQUIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token IDs as received, not yet checked."""

    token_ids: "array[int]"
    """Typecode "I"."""
    field: str = "token_ids"
    """What the client calls them, for errors."""


Prompt = TextPrompt | ChatPrompt | TokenPrompt


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
            admission=self.admission or later.admission,
            finish=later.finish,
            index=self.index,
            logprobs=later.logprobs if self.logprobs is None else self.logprobs,
            prompt_logprobs=later.prompt_logprobs
            if self.prompt_logprobs is None
            else self.prompt_logprobs,
        )
