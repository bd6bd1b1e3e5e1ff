"""The engine loop: takes requests, runs steps, returns tokens."""

import dataclasses
import gc
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Generic

from engine_service.config import SchedulerOptions
from engine_service.core.executor import Executor, HandleT
from engine_service.core.inbox import Inbox, ServerGone
from engine_service.core.progress import StepProgress
from engine_service.core.scheduler import Scheduler
from engine_service.core.types import (
    CoreInput,
    EngineInfo,
    Request,
    StepOutput,
    StepPlan,
    StepStats,
)
from engine_service.errors import InvalidRequest
from servicekit.garbage import collect_garbage_rarely

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

# A step creates about a thousand short-lived objects and no reference cycles. The default threshold
# of 700 would run the collector several times a step.
_GC_THRESHOLD = 50_000

_MAX_FIRST_ADMISSIONS = 32
"""Sequences that a step admits while the device has nothing to do: it then computes for these while
the next step is planned for the others."""

_MAX_PREPARING = 16
"""Grammars compiled at a time; the executor keeps more than these."""
_PREPARING_SECONDS = 0.001
"""How often the core looks whether one is compiled, if it has nothing else to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight(Generic[HandleT]):
    """A step that was launched but not yet collected."""

    plan: StepPlan
    handle: HandleT
    begun_at: float
    """`time.perf_counter()` before it was planned."""
    schedule_seconds: float


class EngineCore(Generic[HandleT]):
    """Owns the scheduler and the executor and runs one step per call.

    Not thread-safe: call it from one thread.
    """

    def __init__(
        self,
        info: EngineInfo,
        options: SchedulerOptions,
        executor: Executor[HandleT],
        *,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.scheduler = Scheduler(info, options, enable_prefix_caching)
        self._executor = executor
        # A CPU computes during launch, so a second step would only delay the first one's tokens.
        default = 1 if info.device == "cpu" else 2
        self._max_steps_in_flight = options.max_steps_in_flight or default
        self._in_flight: deque[_InFlight[HandleT]] = deque()
        self._ended_at = 0.0
        # By ID, in order of arrival: requests whose grammars are being compiled, so that no step
        # of others waits for them.
        self._preparing: dict[int, Request] = {}

    @property
    def has_work(self) -> bool:
        """Whether `step` has work to do or results to return."""
        return (
            self.scheduler.has_work
            or bool(self._in_flight)
            or bool(self._preparing)
            or self.scheduler.pool.has_undescribed
        )

    def add(self, request: Request) -> None:
        """Adds a request; `step` returns its tokens and its end.

        The server's `convert` or `LLM` has already checked it against `Limits`, because reading
        prompts would slow the step loop.

        Raises:
            InvalidRequest: Its ID is in use.
        """
        if request.request_id in self.scheduler or request.request_id in self._preparing:
            raise InvalidRequest(
                f"request_id {request.request_id} is in use",
                {"field": "request_id", "value": str(request.request_id)},
            )
        if not request.arrival_time:
            request = dataclasses.replace(request, arrival_time=time.monotonic())
        grammar = request.sampling_params.grammar
        if grammar is None or self._executor.prepare(grammar):
            self.scheduler.add(request)
        else:
            self._preparing[request.request_id] = request

    def cancel(self, request_id: int) -> None:
        """Ends a request without reporting it; ignores one that is not open."""
        if self._preparing.pop(request_id, None) is None:
            self.scheduler.cancel(request_id)

    def describe_blocks(self, is_wanted: bool) -> None:
        """Describes cached blocks from the next step on, or no longer."""
        self.scheduler.pool.describe_blocks(is_wanted)

    def step(self) -> StepOutput:
        """Launches steps until enough are in flight, then collects the oldest one.

        Blocks until that step's tokens arrive. Without work it returns the current state.
        """
        if self._preparing:
            self._add_prepared()
        self._launch()
        if not self._in_flight:
            assert not self.scheduler.has_unfinished, "unfinished requests, and nothing to run"
            self._executor.check_ranks()
            if self._preparing:
                time.sleep(_PREPARING_SECONDS)
            return self._output(StepProgress(), StepStats())
        step = self._in_flight.popleft()
        result = self._executor.collect(step.handle)
        collected_at = time.perf_counter()
        progress = self.scheduler.update(step.plan, result)
        ended_at = time.perf_counter()
        stats = StepStats(
            num_scheduled_seqs=len(step.plan.slots),
            num_prefill_tokens=progress.num_prefill_tokens,
            num_decode_tokens=progress.num_decode_tokens,
            num_generated_tokens=len(progress.token_ids),
            schedule_seconds=step.schedule_seconds,
            prepare_seconds=result.prepare_seconds,
            launch_seconds=result.launch_seconds,
            wait_seconds=result.wait_seconds,
            update_seconds=ended_at - collected_at,
            device_seconds=result.device_seconds,
            step_seconds=ended_at - max(step.begun_at, self._ended_at),
        )
        self._ended_at = ended_at
        return self._output(progress, stats)

    def close(self) -> None:
        """Waits for the steps in flight, drops their tokens and closes the executor."""
        try:
            while self._in_flight:
                self._executor.collect(self._in_flight.popleft().handle)
        except Exception as error:
            # Nobody waits for its tokens.
            logger.warning("step in flight failed error=%r", error)
        finally:
            self._in_flight.clear()
            self._executor.close()

    def _add_prepared(self) -> None:
        """Adds the requests whose grammars are compiled by now."""
        for request in list(islice(self._preparing.values(), _MAX_PREPARING)):
            grammar = request.sampling_params.grammar
            assert grammar is not None, f"{request.request_id=} has no grammar"
            if self._executor.prepare(grammar):
                del self._preparing[request.request_id]
                self.scheduler.add(request)

    def _launch(self) -> None:
        """Plans and launches steps until enough are in flight."""
        while len(self._in_flight) < self._max_steps_in_flight:
            begun_at = time.perf_counter()
            is_idle = self._max_steps_in_flight > 1 and not self._in_flight
            plan = self.scheduler.schedule(_MAX_FIRST_ADMISSIONS if is_idle else None)
            if plan is None:
                return
            schedule_seconds = time.perf_counter() - begun_at
            self._in_flight.append(
                _InFlight(
                    plan=plan,
                    handle=self._executor.launch(plan),
                    begun_at=begun_at,
                    schedule_seconds=schedule_seconds,
                )
            )

    def _output(self, progress: StepProgress, stats: StepStats) -> StepOutput:
        events = self.scheduler.take_events()
        queues = self.scheduler.statistics()
        blocks = self.scheduler.pool.statistics()
        return StepOutput(
            request_ids=progress.request_ids,
            token_counts=progress.token_counts,
            token_ids=progress.token_ids,
            admissions=events.admissions,
            finishes=events.finishes,
            failures=events.failures,
            logprobs=progress.logprobs,
            prompt_logprobs=progress.prompt_logprobs,
            cache_delta=self.scheduler.pool.take_delta(),
            stats=dataclasses.replace(
                stats,
                num_running=queues.num_running,
                num_waiting=queues.num_waiting + len(self._preparing),
                num_waiting_prefill_tokens=queues.num_waiting_prefill_tokens,
                num_free_blocks=blocks.num_empty_blocks + blocks.num_cached_blocks,
                num_used_blocks=blocks.num_used_blocks,
                num_invalid_logits=events.num_invalid_logits,
                num_preemptions=events.num_preemptions,
                num_prefix_query_tokens=events.num_prefix_query_tokens,
                num_prefix_hit_tokens=events.num_prefix_hit_tokens,
            ),
            rank_stats=self._executor.take_rank_stats(),
        )


def serve(core: EngineCore[HandleT], connection: "Connection[StepOutput, CoreInput]") -> None:
    """Runs the core for a server in another process until the server closes the connection.

    Reads `CoreInput` from the connection and waits for it only while there is no work. Writes one
    `StepOutput` after each step, after each input, and twice a second when there is neither; the
    server uses them as heartbeats. Does not close the core. Objects that exist at the start are
    excluded from garbage collection.
    """
    inbox = Inbox(connection)
    with calm_garbage_collection():
        try:
            while True:
                _serve_once(core, inbox, connection)
        except ServerGone:
            return


def _serve_once(
    core: EngineCore[HandleT], inbox: Inbox, connection: "Connection[StepOutput, CoreInput]"
) -> None:
    """Reads new input, runs a step and sends the output."""
    failures = inbox.deliver(core, must_wait=not core.has_work)
    output = core.step()
    if failures:
        output = dataclasses.replace(output, failures=failures + output.failures)
    if len(inbox):
        output = dataclasses.replace(output, stats=_with_inbox(output.stats, inbox))
    try:
        connection.send(output)
    except (BrokenPipeError, ConnectionResetError):
        logger.info("server gone")
        raise ServerGone from None


def _with_inbox(stats: StepStats, inbox: Inbox) -> StepStats:
    """Adds the requests still in the inbox to the waiting ones."""
    return dataclasses.replace(
        stats,
        num_waiting=stats.num_waiting + len(inbox),
        num_waiting_prefill_tokens=stats.num_waiting_prefill_tokens + inbox.num_tokens,
    )


@contextmanager
def calm_garbage_collection() -> Iterator[None]:
    """Excludes existing objects from garbage collection, as scanning them takes 0.1 seconds.

    New objects are collected less often.
    """
    thresholds = gc.get_threshold()
    collect_garbage_rarely(_GC_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
