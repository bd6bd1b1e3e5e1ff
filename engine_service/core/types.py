"""Types of the engine core: its input, the plan of one step, its output.

Counts are of tokens, sequences or blocks as the name says. Times are seconds of `time.monotonic`,
which is one clock for all processes of a host.
"""

import enum
import math
import struct
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from engine_service.core.logprobs import RequestLogprobs
from engine_service.core.logprobs import StepLogprobs as StepLogprobs
from protos.wire.sampling_params import SUPPORTED_PARAMS, Grammar, SamplingParams

NO_TOKEN = -1
"""Token of a row whose logits are not a distribution: NaN, infinite or all masked."""
_MIN_PACKED_LENGTH = 64


class FinishReason(enum.Enum):
    """Why a request ended successfully."""

    STOP = "stop"
    """An end-of-sequence or stop token was generated."""
    LENGTH = "length"
    """`max_tokens` or the model's length was reached."""


def int32_array(values: "list[int] | array[int] | tuple[int, ...]" = ()) -> "array[int]":
    """Returns an array of typecode "i", which the core uses for all token and block IDs.

    Raises:
        OverflowError: A value does not fit.
        TypeError: A value is no integer.
    """
    if isinstance(values, list) and len(values) >= _MIN_PACKED_LENGTH:
        # Twice as fast as from the list; if a value is wrong, the last line raises the error.
        with suppress(struct.error):
            return array("i", struct.pack(f"{len(values)}i", *values))
    return array("i", values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the core receives it, already checked against `Limits`."""

    request_id: int
    """Unique in the engine's lifetime; chosen by the submitter."""
    prompt_token_ids: "array[int]"
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    resume_token_ids: "array[int]" = field(default_factory=int32_array)
    """Tokens generated elsewhere. They count as output but are not sent again."""
    priority: int = 0
    """Larger is more urgent."""
    cache_salt: str = ""
    arrival_time: float = 0.0
    """0 means the time at which the core receives the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What start-up found about the model and its cache; never changes afterwards."""

    model_name: str
    architecture: str
    model_fingerprint: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    """Blocks that can hold tokens; the reserved null block is not counted."""
    max_num_seqs: int
    max_num_batched_tokens: int
    eos_token_ids: frozenset[int]
    tensor_parallel_size: int
    dtype: str
    device: str
    max_logprobs: int
    """The most logprobs that a request may ask for at each position."""
    default_sampling_params: SamplingParams
    """What the model's authors recommend for parameters that a request leaves unset."""
    windows: tuple[int, ...] = ()
    """Of each layer the tokens that a token reads at most, its own among them; 0 means all."""
    supported_params: tuple[str, ...] = SUPPORTED_PARAMS
    """The sampling parameters that the engine supports with this model."""

    @property
    def window(self) -> int:
        """The tokens that a token reads at most, in any layer; 0 means all."""
        return max(self.windows, default=0) if all(self.windows) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreInput:
    """One message to the core."""

    requests: list[Request] = field(default_factory=list)
    cancelled_ids: list[int] = field(default_factory=list)
    describes_blocks: bool | None = None
    """Whether cached blocks are described from now on (`CacheDelta.contents`); None is as before.
    """


class SlotGrammar(NamedTuple):
    """What a new slot's text must match: the tokens behind those of the prompt."""

    slot: int
    grammar: Grammar
    num_prompt_tokens: int


class GrammarFailure(NamedTuple):
    """Why a grammar cannot say what comes next."""

    why: str
    mismatch_index: int | None = None
    """Of the first output token that the grammar does not allow, if that is the reason; resumed
    tokens are the first ones."""


MAX_PREFIX_GROUPS = 16
"""Groups of sequences whose shared prefix a step reads once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What every rank needs to run one step: flat integer arrays over stable slots.

    A sequence keeps its slot while it runs. A rank keeps, per slot, the tokens, the block table
    row and the sampling parameters, so a plan carries only changes. Apply the fields in order:
    new slots, then block table entries, then run the rows.

    Row r computes positions `num_computed_tokens[r]` up to, not including,
    `num_computed_tokens[r] + num_scheduled_tokens[r]` of its slot's tokens. If `is_sampled[r]`,
    the logits of the last position give the next token, and the rank writes it into the slot's
    tokens itself. The core may not know that token yet when it plans the next step; it assumes
    exactly one (see `StepResult`).
    """

    step_id: int

    new_slots: "array[int]"
    """[num_new] slots assigned since the last plan; their old contents are void."""
    new_num_tokens: "array[int]"
    """[num_new] known tokens of each."""
    new_token_ids: "array[int]"
    """[sum(new_num_tokens)] these tokens, from position 0."""
    new_sampling_records: "array[int]"
    """[num_new * len(RECORD_COLUMNS)] typecode "q": what `sampling_params.to_record` gives."""

    new_edits: "array[int]" = field(default_factory=int32_array)
    """Of the new slots whose requests edit logits, one after the other: `LogitEdits.to_record`."""

    block_slots: "array[int]"
    """[num_entries] slots whose block table row grows."""
    block_indices: "array[int]"
    """[num_entries] logical index of the block in the row."""
    block_ids: "array[int]"
    """[num_entries] physical block; never 0, which is the null block of padded rows."""

    slots: "array[int]"
    """[num_rows] the sequences of this step, each at most once."""
    num_computed_tokens: "array[int]"
    """[num_rows] tokens whose keys and values are in the cache before this step."""
    num_scheduled_tokens: "array[int]"
    """[num_rows] tokens to compute, at least 1."""
    is_sampled: "array[int]"
    """[num_rows] typecode "b": 1 when the row ends at the last token of its sequence."""
    num_prompt_logprobs: "array[int] | None" = None
    """[num_rows] prompt tokens whose logprobs the row must bring: those at the positions from
    `num_computed_tokens[r] + 1` on. None if no row must bring any."""

    new_grammars: list[SlotGrammar] = field(default_factory=list)
    """The grammars of those of the new slots that have one."""

    shared_prefixes: "array[int] | None" = None
    """Up to `MAX_PREFIX_GROUPS` groups of slots whose first tokens are in the same blocks, so that
    rows of one token need to read their keys only once: of each group how many slots it has, how
    many tokens they share, then the slots. A slot is in one group at most, and need not have a row
    in this step. None if little is shared.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The tokens of one step: one per sampled row, unless the executor says otherwise.

    A sampled row may also yield no token, or several consecutive ones. The rank has then written
    exactly these into the slot's tokens. Keys and values count as computed only up to the end of
    the row, whatever else the rank computed. The next row of the sequence computes those of all
    its new tokens, or, if there were none, those of its last token again.

    A later step planned in the meantime assumed one token. So a count other than one is allowed
    only where no later step in flight has a row of the same sequence. An executor that yields such
    counts needs `max_steps_in_flight` 1. `Scheduler.update` rejects results that break this rule.
    """

    token_counts: "array[int]"
    """[num_rows] tokens generated per row of the plan; 0 where `is_sampled` is 0."""
    token_ids: "array[int]"
    """[sum(token_counts)] these tokens, row after row; `NO_TOKEN` where the logits gave none."""
    logprobs: StepLogprobs | None = None
    """Those of all `token_ids`, as wide as the request that asks for most; None if none asks."""
    prompt_logprobs: StepLogprobs | None = None
    """Those of the prompt tokens that `StepPlan.num_prompt_logprobs` asks for, row after row, as
    wide as the request that asks for most; None if no row must bring any."""
    prepare_seconds: float = 0.0
    """Time the host spent copying the plan to the device."""
    launch_seconds: float = 0.0
    """Time the host spent launching the model; on a CPU, computing it."""
    wait_seconds: float = 0.0
    """Time the host then waited for the tokens."""
    device_seconds: float = 0.0
    """Time from the device's first kernel of the step to its last, gaps included."""
    grammar_failures: Mapping[int, GrammarFailure] = field(default_factory=dict)
    """By row of the plan, why the grammar of one that yielded `NO_TOKEN` cannot go on."""
    grammar_token_ids: "Mapping[int, array[int]]" = field(default_factory=dict)
    """By row of the plan, the tokens that the grammar of one that yielded `NO_TOKEN` allows, if it
    has one that can go on and whose text is not complete."""

    def check(self, plan: StepPlan) -> None:
        """Checks that each row of the plan has a count and that the counts match the tokens.

        Raises:
            RuntimeError: They do not match, or a row that is not sampled has tokens.
        """
        counts = self.token_counts
        if (
            len(counts) != len(plan.slots)
            or sum(counts) != len(self.token_ids)
            or any(
                count < 0 or (count and not is_sampled)
                for count, is_sampled in zip(counts, plan.is_sampled, strict=True)
            )
        ):
            raise RuntimeError(
                f"step {plan.step_id} asked for {sum(plan.is_sampled)} tokens from "
                f"{len(plan.slots)} rows, but got {len(self.token_ids)} tokens from {len(counts)} "
                "rows"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A request was scheduled for the first time."""

    request_id: int
    num_cached_tokens: int
    """Prompt and resumed tokens found in the prefix cache."""
    seed: int
    queue_seconds: float
    """From arrival to this scheduling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A request ended successfully."""

    request_id: int
    reason: FinishReason
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The core refused a request, or a step yielded no token for it."""

    request_id: int
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContents:
    """What some cached blocks hold; a block comes after its parent."""

    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    """[num_blocks] the low 64 bits of their hashes."""
    parents: "array[int]" = field(default_factory=lambda: array("Q"))
    """[num_blocks] the same of the block before each; 0 if it is the first of its prompt."""
    token_ids: "array[int]" = field(default_factory=int32_array)
    """[num_blocks * block_size]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDelta:
    """Blocks added to and removed from the cache, as the low 64 bits of their hashes.

    A hash is in at most one of the two.
    """

    stored: "array[int]" = field(default_factory=lambda: array("Q"))
    removed: "array[int]" = field(default_factory=lambda: array("Q"))
    contents: BlockContents | None = None
    """If the server wants to know; first of the blocks that are cached already, some in each step.
    The first block of a prompt with a salt is left out, so those after it have an unknown parent.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """The engine's state after a step, and what the step did."""

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_prefill_tokens: int = 0
    """Uncomputed prompt tokens of waiting and running sequences."""
    num_free_blocks: int = 0
    """Blocks without an owner: free ones and cached ones that may be reused."""
    num_used_blocks: int = 0
    """Blocks that sequences own."""
    num_scheduled_seqs: int = 0
    num_prefill_tokens: int = 0
    """Prompt tokens computed in the step."""
    num_decode_tokens: int = 0
    """Generated tokens computed in the step, except in chunks of preempted sequences that catch up;
    a chunk of one token counts."""
    num_generated_tokens: int = 0
    num_invalid_logits: int = 0
    """Requests that ended in the step because their logits were not a distribution."""
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    """Tokens looked up in the prefix cache by requests admitted in the step."""
    num_prefix_hit_tokens: int = 0
    schedule_seconds: float = 0.0
    """Host time, as are the next four; those of overlapping steps overlap."""
    prepare_seconds: float = 0.0
    launch_seconds: float = 0.0
    wait_seconds: float = 0.0
    update_seconds: float = 0.0
    device_seconds: float = 0.0
    """Time from the device's first kernel of the step to its last, gaps included."""
    step_seconds: float = 0.0
    """What the step added to the total time: from the end of the previous step, or from its own
    start if that was later, to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """One rank of several, since the engine became ready."""

    rank: int
    num_steps: int
    """Steps that it has begun."""
    lag_seconds: float
    """Sum over these steps: from when the first rank was about to send the plan to when this rank
    began it."""
    collective_seconds: float | None
    """Time spent in the collectives of the steps, with the wait for other ranks; None if that is
    not measured."""
    memory_bytes: int
    """In use on its GPU, by all processes; on a CPU, resident memory of its own process."""

    @property
    def is_sound(self) -> bool:
        """Whether all of them are numbers that can be true."""
        counts = (self.rank, self.num_steps, self.memory_bytes)
        seconds = (self.lag_seconds, self.collective_seconds or 0.0)
        return all(isinstance(count, int) and count >= 0 for count in counts) and all(
            isinstance(value, float) and 0 <= value < math.inf for value in seconds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """One message from the core: everything that one step produced; empty when idle."""

    request_ids: "array[int]" = field(default_factory=lambda: array("q"))
    """[num_requests] requests with new tokens."""
    token_counts: "array[int]" = field(default_factory=int32_array)
    """[num_requests] new tokens of each."""
    token_ids: "array[int]" = field(default_factory=int32_array)
    """[sum(token_counts)] these tokens, request after request."""
    admissions: list[Admission] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    logprobs: RequestLogprobs | None = None
    """Those of the tokens above, of the requests that asked for them; None if there are none."""
    prompt_logprobs: RequestLogprobs | None = None
    """Those of tokens of prompts; all of a request's come before or with its first token."""
    cache_delta: CacheDelta = field(default_factory=CacheDelta)
    stats: StepStats = field(default_factory=StepStats)
    rank_stats: tuple[RankStats, ...] = ()
    """What several ranks have reported since the last output, twice a second each; the last of a
    rank counts."""
