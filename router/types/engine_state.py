"""What an engine says about itself: its model, its load and its cache.

Counts are of tokens, requests or blocks, as the name says.
"""

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from protos.wire.sampling_params import BASIC_PARAMS, SamplingParams, demanded

if TYPE_CHECKING:
    from collections.abc import Sequence


class EngineState(enum.Enum):
    """Whether the router sends requests to an engine."""

    CONNECTING = "connecting"
    SERVING = "serving"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"


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
