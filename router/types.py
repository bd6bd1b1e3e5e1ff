"""The vocabulary of the router: a request in token IDs, what an engine sends back, what is known.

Counts are of tokens, requests or blocks as the name says; times are seconds.
"""

import enum
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class FinishReason(enum.Enum):
    """Why a request ended well."""

    STOP = "stop"
    LENGTH = "length"


class EngineState(enum.Enum):
    """Whether requests are sent to an engine."""

    CONNECTING = "connecting"
    SERVING = "serving"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """Adds `bias` to one token's logit."""

    token_id: int
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a request ends; None means unset, the engine's default.

    The router hands these on as they are: the engine refuses what it does not support, by name.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    logprobs: int | None = None
    logit_bias: tuple[LogitBias, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """One request after tokenization."""

    request_id: str
    model: str
    prompt_token_ids: "array[int]"
    """Typecode "i"."""
    model_info: "ModelInfo | None" = None
    """The model as the prompt was made for it; None takes whatever bears the name."""
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    resume_token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens that another engine generated before; typecode "i"."""
    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    """What is left of the client's deadline, or None."""
    traceparent: str = ""
    tracestate: str = ""

    @property
    def num_known_tokens(self) -> int:
        """Tokens of the prompt and those generated before."""
        return len(self.prompt_token_ids) + len(self.resume_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An engine scheduled the request."""

    engine: str
    """The engine's address."""
    num_cached_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """New tokens of the request."""

    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The request ended well; nothing follows."""

    reason: FinishReason
    stop_token_id: int | None = None


EngineEvent = Admitted | Tokens | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine says of the model it serves."""

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
    """The most tokens of one step; 0 is unknown."""

    @property
    def identity(self) -> tuple[str, str, str, int, int]:
        """What engines have in common that may serve the same request."""
        return (
            self.name,
            self.fingerprint,
            self.tokenizer_sha256,
            self.block_size,
            self.vocab_size,
        )

    def with_length(self, max_model_len: int) -> "ModelInfo":
        """Returns the same with another length."""
        if max_model_len == self.max_model_len:
            return self
        return replace(self, max_model_len=max_model_len)

    @property
    def max_sequence_len(self) -> int:
        """The most tokens of prompt and output that the engine takes, by its own rule."""
        return min(self.max_model_len, self.num_blocks * self.block_size + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine says it is."""

    state: EngineState = EngineState.CONNECTING
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_prefill_tokens: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    prefill_tokens_per_second: float = 0.0
    """Measured; 0 before any measurement."""
    decode_tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUpdate:
    """One message of an engine's WatchCache: a part of a snapshot, or a delta."""

    epoch: int
    """Tells one start of the engine from the next; never 0."""
    sequence_number: int
    """Of the last change contained; equal in all parts of a snapshot."""
    stored: "Sequence[int]"
    """Low 64 bits of block hashes."""
    removed: "Sequence[int]" = ()
    is_snapshot: bool = False
    is_first: bool = False
    """The snapshot begins: what was known before is void."""
    is_last: bool = False
    """The snapshot is complete."""
    part_number: int = 0
    """Place of the part in its snapshot, from 1 on; 0 from an engine that does not number them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """All that is known of one engine, frozen for one decision or one listing."""

    address: str
    state: EngineState
    model: ModelInfo | None
    load: EngineLoad
    num_in_flight: int
    """This router's requests under way on it."""
    num_in_flight_prefill_tokens: int
    """Uncached prompt tokens that this router sent and the engine has not yet reported."""
    num_indexed_blocks: int
    cache_event_age: float | None = None
    """Seconds since it last told of its cache; None before it did."""
    detail: str = ""
    """Why it is not serving, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """One model that can be asked for."""

    info: ModelInfo
    num_serving_engines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Text, tokenized as it stands."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """What one side said."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, laid out by the model's chat template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token IDs as they came in, not yet checked."""

    token_ids: "array[int]"
    """Typecode "I"."""


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request of a client, as it came in."""

    request_id: str
    model: str
    """Empty means the only one served."""
    prompt: Prompt
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    n: int | None = None
    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None
    """What is left of the client's deadline, or None."""
    traceparent: str = ""
    tracestate: str = ""
    num_bytes: int = 0
    """Of the message that it came in, which is kept until the request ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Where and how a request started."""

    request_id: str
    model: str
    engine: str
    """The engine's address."""
    num_prompt_tokens: int
    num_cached_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Why a request ended well, and what it used."""

    reason: FinishReason
    stop_token_id: int | None
    num_prompt_tokens: int
    num_completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDelta:
    """What is new of one request; `admission` comes with the first, `finish` with the last."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    admission: Admission | None = None
    finish: Finish | None = None
