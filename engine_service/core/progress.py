"""What the scheduler reports."""

from array import array
from dataclasses import dataclass, field

from engine_service.core.logprobs import RequestLogprobs
from engine_service.core.types import Admission, Failure, Finish, int32_array


@dataclass(slots=True, kw_only=True)
class ScheduleEvents:
    """What happened between two calls of `Scheduler.take_events`."""

    admissions: list[Admission] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    """Requests already complete on arrival, and requests completed by a step."""
    failures: list[Failure] = field(default_factory=list)
    num_invalid_logits: int = 0
    """Requests for which a step yielded no token."""
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """What one step generated for the requests that are still open."""

    request_ids: "array[int]" = field(default_factory=lambda: array("q"))
    """[num_requests] requests with new tokens."""
    token_counts: "array[int]" = field(default_factory=int32_array)
    """[num_requests] new tokens of each, at least 1."""
    token_ids: "array[int]" = field(default_factory=int32_array)
    """[sum(token_counts)] these tokens, request after request."""
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    logprobs: RequestLogprobs | None = None
    prompt_logprobs: RequestLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """Waiting and running sequences."""

    num_running: int
    num_waiting: int
    num_waiting_prefill_tokens: int
    """Uncomputed tokens of waiting sequences and of running ones that have not caught up."""
