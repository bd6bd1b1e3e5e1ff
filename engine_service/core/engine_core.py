"""The engine's loop: requests in, one step after the other, tokens out."""

import dataclasses
import gc
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic

from engine_service.config import SchedulerOptions
from engine_service.core.executor import Executor, HandleT
from engine_service.core.limits import Limits
from engine_service.core.progress import StepProgress
from engine_service.core.scheduler import Scheduler
from engine_service.core.types import (
    CoreInput,
    EngineInfo,
    Failure,
    Request,
    StepOutput,
    StepPlan,
    StepStats,
    int32_array,
)
from engine_service.errors import InvalidRequest, RequestError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

# A step makes some thousand short-lived objects; the default of 700 would search them for cycles,
# of which there are none, several times a step.
_GC_THRESHOLD = 50_000


class EngineCore(Generic[HandleT]):
    """Owns the scheduler and the executor, and moves both on, one step a call.

    Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        info: EngineInfo,
        options: SchedulerOptions,
        executor: Executor[HandleT],
        *,
        enable_prefix_caching: bool = True,
        max_steps_in_flight: int = 1,
    ) -> None:
        if max_steps_in_flight < 1:
            raise ValueError(f"{max_steps_in_flight=} must be at least 1")
        self.scheduler = Scheduler(info, options, enable_prefix_caching)
        self._limits = Limits.from_info(info)
        self._executor = executor
        self._max_steps_in_flight = max_steps_in_flight
        self._in_flight: deque[tuple[StepPlan, HandleT]] = deque()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to tell."""
        return self.scheduler.has_work or bool(self._in_flight)

    def add(self, request: Request) -> None:
        """Takes a request; its tokens and its end come out of `step`.

        Raises:
            RequestError: The request can never be served here, or its ID is in use.
        """
        if request.request_id in self.scheduler:
            raise InvalidRequest(
                f"request_id {request.request_id} is in use",
                {"field": "request_id", "value": str(request.request_id)},
            )
        self._limits.check(request)
        if not request.arrival_time:
            request = dataclasses.replace(request, arrival_time=time.monotonic())
        self.scheduler.add(request)

    def cancel(self, request_id: int) -> None:
        """Ends a request without a word; one that is not open is passed over."""
        self.scheduler.cancel(request_id)

    def step(self) -> StepOutput:
        """Launches steps until enough are in flight, then collects the oldest one.

        Blocks until that one's tokens are there. Without work it returns the present state.
        """
        schedule_seconds = self._launch()
        if not self._in_flight:
            assert not self.scheduler.has_unfinished, "unfinished requests, and nothing to run"
            return self._output(StepProgress(), StepStats(schedule_seconds=schedule_seconds))
        plan, handle = self._in_flight.popleft()
        result = self._executor.collect(handle)
        start = time.perf_counter()
        progress = self.scheduler.update(plan, result)
        stats = StepStats(
            num_scheduled_seqs=len(plan.slots),
            num_prefill_tokens=progress.num_prefill_tokens,
            num_decode_tokens=progress.num_decode_tokens,
            num_generated_tokens=len(progress.token_ids),
            schedule_seconds=schedule_seconds,
            prepare_seconds=result.prepare_seconds,
            execute_seconds=result.execute_seconds,
            update_seconds=time.perf_counter() - start,
        )
        return self._output(progress, stats)

    def close(self) -> None:
        """Waits for the steps in flight, drops their tokens and closes the executor."""
        while self._in_flight:
            _, handle = self._in_flight.popleft()
            self._executor.collect(handle)
        self._executor.close()

    def _launch(self) -> float:
        """Launches what may be in flight; returns the seconds that scheduling took."""
        seconds = 0.0
        while len(self._in_flight) < self._max_steps_in_flight:
            start = time.perf_counter()
            plan = self.scheduler.schedule()
            seconds += time.perf_counter() - start
            if plan is None:
                break
            self._in_flight.append((plan, self._executor.launch(plan)))
        return seconds

    def _output(self, progress: StepProgress, stats: StepStats) -> StepOutput:
        events = self.scheduler.take_events()
        queues = self.scheduler.statistics()
        blocks = self.scheduler.pool.statistics()
        return StepOutput(
            request_ids=progress.request_ids,
            token_counts=int32_array([1]) * len(progress.request_ids),
            token_ids=progress.token_ids,
            admissions=events.admissions,
            finishes=events.finishes,
            cache_delta=self.scheduler.pool.take_delta(),
            stats=dataclasses.replace(
                stats,
                num_running=queues.num_running,
                num_waiting=queues.num_waiting,
                num_waiting_prefill_tokens=queues.num_waiting_prefill_tokens,
                num_free_blocks=blocks.num_empty_blocks + blocks.num_cached_blocks,
                num_used_blocks=blocks.num_used_blocks,
                num_preemptions=events.num_preemptions,
                num_prefix_query_tokens=events.num_prefix_query_tokens,
                num_prefix_hit_tokens=events.num_prefix_hit_tokens,
            ),
        )


def serve(core: EngineCore[HandleT], connection: "Connection[StepOutput, CoreInput]") -> None:
    """Runs the core for a server in another process until that closes the connection.

    Reads `CoreInput` from the connection, waiting only while there is no work, and writes one
    `StepOutput` after each step and after each input. Does not close the core. The collector of
    cycles leaves alone what exists at the start.
    """
    with _calm_garbage_collection():
        while _serve_once(core, connection):
            pass


def _serve_once(core: EngineCore[HandleT], connection: "Connection[StepOutput, CoreInput]") -> bool:
    """Takes in what has come, does a step, tells its outcome; returns whether to go on."""
    failures: list[Failure] = []
    must_wait = not core.has_work
    while must_wait or connection.poll():
        must_wait = False
        message = _receive(connection)
        if message is None:
            return False
        for request in message.requests:
            try:
                core.add(request)
            except RequestError as error:
                failures.append(Failure(request_id=request.request_id, error=error))
        for request_id in message.cancelled_ids:
            core.cancel(request_id)
    output = core.step()
    if failures:
        output = dataclasses.replace(output, failures=failures)
    try:
        connection.send(output)
    except (BrokenPipeError, ConnectionResetError):
        logger.info("event=server_gone")
        return False
    return True


def _receive(connection: "Connection[StepOutput, CoreInput]") -> CoreInput | None:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        logger.info("event=server_gone")
        return None


@contextmanager
def _calm_garbage_collection() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
