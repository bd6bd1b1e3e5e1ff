"""One reader's pending outputs, merged per request while the reader is busy."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine_service.core.logprobs import StepLogprobs
from engine_service.core.types import Admission, Finish, Request, int32_array
from engine_service.errors import RequestError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable

_EVENT_COST = 16
"""Tokens that an admission, finish or failure counts as."""


@dataclass(slots=True, eq=False, kw_only=True)
class OpenRequest:
    """A request that has not ended yet.

    Attributes:
        request: The request as sent to the core.
        stream: Receives its outputs.
        handle: Its number within the stream.
        name: The client's name for it, for logs.
        is_admitted: Whether the core has scheduled it once.
        scheduled_time: When it was first scheduled, once it is admitted.
        num_generated_tokens: Tokens generated here so far.
        first_token_time: When the first of them arrived.
        last_token_time: When the newest of them arrived.
        timer: Ends it at its deadline.
        forget_check: Says at its end that nobody needs the check of its grammar; harmless after it.
    """

    request: Request
    stream: "OutputStream"
    handle: int
    name: str
    is_admitted: bool = False
    scheduled_time: float = 0.0
    num_generated_tokens: int = 0
    first_token_time: float = 0.0
    last_token_time: float = 0.0
    timer: asyncio.TimerHandle | None = None
    forget_check: "Callable[[], None] | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """The logprobs of consecutive tokens of a prompt."""

    first_position: int
    """Position of the first of them in the prompt."""
    logprobs: StepLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputBatch:
    """The outputs of a stream's requests since the reader's last batch.

    Within a batch a request is admitted before its tokens, and ends after them; logprobs of its
    prompt come before its tokens. The first three fields are parallel as in `StepOutput`, with one
    entry per request.
    """

    handles: list[int] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    token_ids: "array[int]" = field(default_factory=int32_array)
    admissions: list[tuple[int, Admission]] = field(default_factory=list)
    finishes: list[tuple[int, Finish]] = field(default_factory=list)
    failures: list[tuple[int, RequestError]] = field(default_factory=list)
    logprobs: dict[int, StepLogprobs] = field(default_factory=dict)
    """Those of all tokens above, by handle, of the requests that asked for them."""
    prompt_logprobs: dict[int, PromptLogprobs] = field(default_factory=dict)
    """By handle."""

    def __bool__(self) -> bool:
        return bool(
            self.handles
            or self.admissions
            or self.finishes
            or self.failures
            or self.prompt_logprobs
        )


class OutputStream:
    """A bounded buffer between the engine and one reader, used on the event loop only.

    The engine never waits for the reader: outputs are merged per request, so a reader that falls
    behind gets fewer and larger batches. Callers that add must check `is_overfull` afterwards.

    A single step can bring more logprobs of a prompt than the buffer's bound. So the logprobs of
    the newest step never make a stream overfull, nor do any while its reader waits for them.
    """

    def __init__(self, max_buffered_tokens: int) -> None:
        self.max_buffered_tokens = max_buffered_tokens
        self.open_requests: dict[int, OpenRequest] = {}
        """By handle."""
        self._tokens: dict[int, array[int]] = {}
        self._admissions: list[tuple[int, Admission]] = []
        self._finishes: list[tuple[int, Finish]] = []
        self._failures: list[tuple[int, RequestError]] = []
        self._logprobs: dict[int, StepLogprobs] = {}
        self._prompt_logprobs: dict[int, PromptLogprobs] = {}
        self._num_buffered = 0
        self._num_logprobs = 0
        self._num_new_logprobs = 0
        self._is_awaited = False
        self._error: RequestError | None = None
        self._changed = asyncio.Event()

    @property
    def is_overfull(self) -> bool:
        """Whether the buffer exceeds its bound."""
        excused = self._num_logprobs if self._is_awaited else self._num_new_logprobs
        return self._num_buffered - excused > self.max_buffered_tokens

    @property
    def has_failed(self) -> bool:
        """Whether the stream ends with an error once its buffer is read."""
        return self._error is not None

    @property
    def has_more(self) -> bool:
        """Whether the reader has anything left to read or wait for."""
        return bool(self.open_requests) or self._num_buffered > 0

    @property
    def num_buffered(self) -> int:
        """Tokens in the buffer; a logprob counts as a token, and an event as several."""
        return self._num_buffered

    def add_tokens(self, handle: int, token_ids: "array[int]") -> None:
        """Adds new tokens of a request."""
        waiting = self._tokens.get(handle)
        if waiting is None:
            self._tokens[handle] = token_ids
        else:
            waiting.extend(token_ids)
        self._add_cost(len(token_ids))

    def begin_step(self) -> None:
        """Tells that logprobs of another step follow."""
        self._num_new_logprobs = 0

    def add_logprobs(self, handle: int, logprobs: StepLogprobs) -> None:
        """Adds the logprobs of the tokens of a request that were added last."""
        waiting = self._logprobs.get(handle)
        if waiting is None:
            self._logprobs[handle] = logprobs
        else:
            waiting.extend(logprobs)
        self._add_logprob_cost(logprobs.num_candidates)

    def add_prompt_logprobs(self, handle: int, first_position: int, logprobs: StepLogprobs) -> None:
        """Adds the logprobs of the next tokens of a request's prompt."""
        waiting = self._prompt_logprobs.get(handle)
        if waiting is None:
            self._prompt_logprobs[handle] = PromptLogprobs(
                first_position=first_position, logprobs=logprobs
            )
        else:
            waiting.logprobs.extend(logprobs)
        self._add_logprob_cost(logprobs.num_candidates)

    def add_admission(self, handle: int, admission: Admission) -> None:
        """Adds that a request was scheduled for the first time."""
        self._admissions.append((handle, admission))
        self._add_cost(_EVENT_COST)

    def add_finish(self, handle: int, finish: Finish) -> None:
        """Adds that a request ended successfully."""
        self._finishes.append((handle, finish))
        self._add_cost(_EVENT_COST)

    def add_failure(self, handle: int, error: RequestError) -> None:
        """Adds that a request was refused or failed."""
        self._failures.append((handle, error))
        self._add_cost(_EVENT_COST)

    def discard(self, handle: int) -> None:
        """Drops the buffered outputs of a cancelled request."""
        self._num_buffered -= len(self._tokens.pop(handle, ()))
        self._discard_logprobs(handle)
        kept = [entry for entry in self._admissions if entry[0] != handle]
        self._num_buffered -= _EVENT_COST * (len(self._admissions) - len(kept))
        self._admissions = kept

    def fail(self, error: RequestError, *, keep_outputs: bool = True) -> None:
        """Ends the stream: the reader gets the buffer, then the error. The first error counts.

        Args:
            error: What `wait` raises at the end.
            keep_outputs: False drops the buffer.
        """
        if self._error is None:
            self._error = error
            if not keep_outputs:
                self._take()
            self._changed.set()

    def wake(self) -> None:
        """Makes `wait` return, with an empty batch if nothing is buffered."""
        self._changed.set()

    async def wait(self) -> OutputBatch:
        """Waits for outputs or `wake`, and returns everything buffered.

        Raises:
            RequestError: The stream has ended and everything was read.
        """
        self._is_awaited = True
        try:
            await self._changed.wait()
        finally:
            self._is_awaited = False
        self._changed.clear()
        batch = self._take()
        if self._error is not None:
            self._changed.set()
            if not batch:
                raise self._error
        return batch

    def _add_cost(self, num_tokens: int) -> None:
        self._num_buffered += num_tokens
        self._changed.set()

    def _add_logprob_cost(self, num_candidates: int) -> None:
        self._num_logprobs += num_candidates
        self._num_new_logprobs += num_candidates
        self._add_cost(num_candidates)

    def _discard_logprobs(self, handle: int) -> None:
        logprobs = self._logprobs.pop(handle, None)
        prompt = self._prompt_logprobs.pop(handle, None)
        cost = logprobs.num_candidates if logprobs else 0
        cost += prompt.logprobs.num_candidates if prompt else 0
        self._num_buffered -= cost
        self._num_logprobs -= cost
        self._num_new_logprobs = min(self._num_new_logprobs, self._num_logprobs)

    def _take(self) -> OutputBatch:
        batch = OutputBatch(
            handles=list(self._tokens),
            token_counts=[len(token_ids) for token_ids in self._tokens.values()],
            token_ids=_joined(self._tokens.values()),
            admissions=self._admissions,
            finishes=self._finishes,
            failures=self._failures,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
        )
        self._tokens = {}
        self._admissions = []
        self._finishes = []
        self._failures = []
        self._logprobs = {}
        self._prompt_logprobs = {}
        self._num_buffered = 0
        self._num_logprobs = 0
        self._num_new_logprobs = 0
        return batch


def _joined(parts: "Iterable[array[int]]") -> "array[int]":
    whole = int32_array()
    for part in parts:
        whole.extend(part)
    return whole
