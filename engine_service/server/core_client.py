"""The asyncio client of the core: submit, cancel, and an output stream per reader."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from engine_service.core.types import Admission, EngineInfo, Request, StepOutput
from engine_service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    RequestError,
    SlowReader,
    StartupError,
    core_lost,
)
from engine_service.server.core_channel import CoreChannel
from engine_service.server.output_stream import OpenRequest, OutputStream
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar

_logger = logging.getLogger(__name__)

CANCELLED = "cancelled"
"""The outcome of a request that its client cancelled."""

_RETRY_AFTER_SECONDS = 1.0
"""When a client that found the queue full may retry."""


class RequestObserver(Protocol):
    """Counts what happens to requests."""

    def count_admission(self, request: OpenRequest, admission: Admission) -> None:
        """A request was scheduled for the first time."""

    def count_tokens(self, request: OpenRequest, num_tokens: int, now: float) -> None:
        """A request got tokens; `request` still holds the state before them."""

    def count_refusal(self, outcome: str) -> None:
        """A request was refused before it opened; `outcome` is the error reason in lower case."""

    def count_slow_reader(self) -> None:
        """A stream was closed because its reader did not read."""

    def count_end(self, request: OpenRequest, outcome: str, now: float) -> None:
        """A request ended: a finish reason, a lower-case error reason, or `CANCELLED`."""


class GrammarCheck(Protocol):
    """Checks what a request's text must match."""

    def check(
        self, grammar: Grammar, done: Callable[[RequestError | None], None]
    ) -> Callable[[], None]:
        """Calls `done` once, at once or later, with the error that ends the request, or None.

        Returns:
            What to call when the answer is not wanted any more.

        Raises:
            RequestError: It cannot be checked now.
        """


class CoreClient:
    """Sends the server's requests to the core and routes its outputs to readers.

    Runs on the event loop; only `join` blocks. Every request ends in exactly one way: a finish, a
    failure, the end of its stream, or cancellation by the reader.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        max_waiting_requests: int,
        observer: RequestObserver,
        on_step: Callable[[StepOutput], None],
    ) -> None:
        self._channel = CoreChannel(connection, self._handle_message, self._handle_loss)
        self._max_waiting_requests = max_waiting_requests
        self._observer = observer
        self._on_step = on_step
        self._grammar_check: GrammarCheck | None = None
        self._request_ids = itertools.count(1)
        self._open_requests: dict[int, OpenRequest] = {}
        self._num_waiting = 0
        self._num_waiting_tokens = 0
        self._failure: RequestError | None = None
        self._streams: set[OutputStream] = set()
        self._info: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> EngineInfo:
        """Waits until the core has loaded the model; cancelling leaves the client usable.

        Raises:
            StartupError: The core reported that it cannot serve.
            EngineFailed: The core ended without a report.
        """
        self._channel.start()
        return await asyncio.shield(self._info)

    def use_grammar_check(self, check: GrammarCheck) -> None:
        """From now on, a request with a grammar reaches the core once its grammar is checked."""
        self._grammar_check = check

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open_requests)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt and resumed tokens of the requests that the core has not started."""
        return self._num_waiting_tokens

    @property
    def is_lost(self) -> bool:
        """Whether the core is gone."""
        return self._lost.is_set()

    def next_request_id(self) -> int:
        """Returns an unused request number."""
        return next(self._request_ids)

    def open_stream(self, max_buffered_tokens: int) -> OutputStream:
        """Returns a stream for one reader, which must close it."""
        stream = OutputStream(max_buffered_tokens)
        self._streams.add(stream)
        if self._failure is not None:
            stream.fail(self._failure)
        return stream

    def submit(
        self,
        stream: OutputStream,
        handle: int,
        request: Request,
        *,
        name: str,
        timeout: float | None = None,
    ) -> None:
        """Sends a request to the core; its outputs arrive in the stream.

        One with a new grammar is open at once, but waits here until the grammar is checked.

        Args:
            stream: From `open_stream`.
            handle: The request's number within the stream.
            request: Checked, with a number from `next_request_id`.
            name: The client's name for it.
            timeout: Seconds until it fails with DeadlineExceeded, or None.

        Raises:
            InvalidRequest: The handle is in use; the request that has it goes on.
            QueueFull: Too many requests wait.
            EngineFailed: The core is gone or suspended.
        """
        if self._failure is not None:
            raise self._failure
        if handle in stream.open_requests:
            other = stream.open_requests[handle].name
            raise InvalidRequest(
                f"handle {handle} of request {name!r} is in use by request {other!r}, which "
                "continues",
                {"field": "handle", "handle": str(handle), "request_id": name},
            )
        if self._num_waiting >= self._max_waiting_requests:
            raise QueueFull(
                f"{self._num_waiting} requests are waiting, the limit of max_waiting_requests",
                {
                    "waiting_count": str(self._num_waiting),
                    "max_waiting_requests": str(self._max_waiting_requests),
                },
                retry_after=_RETRY_AFTER_SECONDS,
            )
        opened = OpenRequest(request=request, stream=stream, handle=handle, name=name)
        if timeout is not None:
            opened.timer = asyncio.get_running_loop().call_later(
                timeout, self._expire, opened, timeout
            )
        stream.open_requests[handle] = opened
        self._open_requests[request.request_id] = opened
        self._num_waiting += 1
        self._num_waiting_tokens += _num_tokens(request)
        self._idle.clear()
        grammar = request.sampling_params.grammar
        if grammar is None or self._grammar_check is None:
            self._channel.submit(request)
        else:
            self._check_grammar(self._grammar_check, grammar, opened)

    def refuse(self, stream: OutputStream, handle: int, error: RequestError) -> None:
        """Answers a submission that never became a request."""
        stream.add_failure(handle, error)
        self._observer.count_refusal(error.reason.lower())
        self._cut_off_slow_readers()

    def cancel(self, stream: OutputStream, handle: int) -> None:
        """Ends a request without an answer; ignores an unknown or finished one."""
        opened = stream.open_requests.get(handle)
        if opened is not None:
            stream.discard(handle)
            self._channel.cancel(opened.request.request_id)
            self._end(opened, CANCELLED)

    def describe_blocks(self, is_wanted: bool) -> None:
        """Asks the core to describe cached blocks from now on, or no longer."""
        self._channel.describe_blocks(is_wanted)

    def close_stream(self, stream: OutputStream) -> None:
        """Forgets a stream and cancels its unfinished requests."""
        self._streams.discard(stream)
        for handle in list(stream.open_requests):
            self.cancel(stream, handle)

    def fail_all(self, error: RequestError) -> None:
        """Ends every stream and every open request with an error."""
        for stream in list(self._streams):
            self._fail_stream(stream, error)

    def suspend(self, error: RequestError) -> None:
        """Ends current and new streams with an error until `resume` is called.

        The core gets the cancellations of their requests as soon as it reads again.
        """
        self._failure = error
        self.fail_all(error)

    def resume(self) -> None:
        """Accepts requests again after `suspend`; does nothing if the core is gone."""
        if not self.is_lost:
            self._failure = None

    async def wait_idle(self) -> None:
        """Waits until no request is open."""
        await self._idle.wait()

    async def wait_lost(self) -> None:
        """Waits until the core is gone."""
        await self._lost.wait()

    def close(self) -> None:
        """Closes the connection, which ends the core; streams must already have ended."""
        self._channel.close()

    def join(self, timeout: float) -> None:
        """Waits for the threads after `close`; blocks up to `timeout` seconds for each."""
        self._channel.join(timeout)

    def _handle_message(self, message: object) -> None:
        if isinstance(message, StepOutput):
            self._on_step(message)
            self._sort_out(message)
        elif self._info.done():
            raise TypeError(f"the core sent a {type(message).__name__} instead of a StepOutput")
        elif isinstance(message, EngineInfo):
            self._info.set_result(message)
        elif isinstance(message, StartupError):
            self._info.set_exception(message)
        else:
            raise TypeError(f"the core sent a {type(message).__name__} instead of an EngineInfo")

    def _sort_out(self, output: StepOutput) -> None:
        now = time.monotonic()
        for admission in output.admissions:
            opened = self._open_requests.get(admission.request_id)
            if opened is not None and not opened.is_admitted:
                opened.is_admitted = True
                opened.scheduled_time = opened.request.arrival_time + admission.queue_seconds
                self._forget_waiting(opened)
                self._observer.count_admission(opened, admission)
                opened.stream.add_admission(opened.handle, admission)
        if output.logprobs is None and output.prompt_logprobs is None:
            self._sort_out_tokens(output, now)
        else:
            self._sort_out_logprobs(output, now)
        for finish in output.finishes:
            opened = self._open_requests.get(finish.request_id)
            if opened is not None:
                opened.stream.add_finish(opened.handle, finish)
                self._end(opened, finish.reason.value)
        for failure in output.failures:
            opened = self._open_requests.get(failure.request_id)
            if opened is not None:
                self._fail(opened, _as_request_error(failure.error))
        self._cut_off_slow_readers()

    def _cut_off_slow_readers(self) -> None:
        for stream in [stream for stream in self._streams if stream.is_overfull]:
            _logger.warning("slow reader cut off num_buffered_tokens=%d", stream.num_buffered)
            self._observer.count_slow_reader()
            self._fail_stream(stream, _too_slow(stream), keep_outputs=False)

    def _sort_out_tokens(self, output: StepOutput, now: float) -> None:
        start = 0
        for request_id, count in zip(output.request_ids, output.token_counts, strict=True):
            end = start + count
            # A request cancelled in the meantime is unknown; its last tokens are dropped.
            opened = self._open_requests.get(request_id)
            if opened is not None:
                self._observer.count_tokens(opened, count, now)
                if not opened.num_generated_tokens:
                    opened.first_token_time = now
                opened.num_generated_tokens += count
                opened.last_token_time = now
                opened.stream.add_tokens(opened.handle, output.token_ids[start:end])
            start = end

    def _sort_out_logprobs(self, output: StepOutput, now: float) -> None:
        """Sorts out tokens and logprobs, those of prompts first."""
        for stream in self._streams:
            stream.begin_step()
        for request_id, position, logprobs in output.prompt_logprobs or ():
            opened = self._open_requests.get(request_id)
            if opened is not None:
                opened.stream.add_prompt_logprobs(opened.handle, position, logprobs)
        self._sort_out_tokens(output, now)
        for request_id, _, logprobs in output.logprobs or ():
            opened = self._open_requests.get(request_id)
            if opened is not None:
                opened.stream.add_logprobs(opened.handle, logprobs)

    def _handle_loss(self) -> None:
        if not self._info.done():
            self._info.set_exception(core_lost())
        self._lost.set()
        self.suspend(core_lost())

    def _check_grammar(self, check: GrammarCheck, grammar: Grammar, opened: OpenRequest) -> None:
        def go_on(error: RequestError | None) -> None:
            # It may have been cancelled, or may have ended otherwise.
            if opened.request.request_id not in self._open_requests:
                return
            if error is None:
                self._channel.submit(opened.request)
            else:
                self._fail(opened, error)
                self._cut_off_slow_readers()

        try:
            opened.forget_check = check.check(grammar, go_on)
        except RequestError as error:
            go_on(error)

    def _expire(self, opened: OpenRequest, timeout: float) -> None:
        self._channel.cancel(opened.request.request_id)
        self._fail(
            opened,
            DeadlineExceeded(
                f"request {opened.name!r} took longer than its timeout of {timeout:g} s",
                {"request_id": opened.name, "timeout_seconds": f"{timeout:g}"},
            ),
        )

    def _fail(self, opened: OpenRequest, error: RequestError) -> None:
        opened.stream.add_failure(opened.handle, error)
        self._end(opened, error.reason.lower())

    def _fail_stream(
        self, stream: OutputStream, error: RequestError, *, keep_outputs: bool = True
    ) -> None:
        self._streams.discard(stream)
        stream.fail(error, keep_outputs=keep_outputs)
        for opened in list(stream.open_requests.values()):
            self._channel.cancel(opened.request.request_id)
            self._end(opened, error.reason.lower())

    def _forget_waiting(self, opened: OpenRequest) -> None:
        self._num_waiting -= 1
        self._num_waiting_tokens -= _num_tokens(opened.request)

    def _end(self, opened: OpenRequest, outcome: str) -> None:
        """Removes a request; every open request ends here."""
        del self._open_requests[opened.request.request_id]
        del opened.stream.open_requests[opened.handle]
        if not opened.is_admitted:
            self._forget_waiting(opened)
        if opened.timer is not None:
            opened.timer.cancel()
        if opened.forget_check is not None:
            opened.forget_check()
        if not self._open_requests:
            self._idle.set()
        self._observer.count_end(opened, outcome, time.monotonic())
        _logger.debug(
            "request ended request_id=%s outcome=%s num_generated_tokens=%d",
            opened.name,
            outcome,
            opened.num_generated_tokens,
        )


def _num_tokens(request: Request) -> int:
    return len(request.prompt_token_ids) + len(request.resume_token_ids)


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    _logger.error("request failed in the core", exc_info=error)
    return RequestError(
        "the engine's core failed to process this request; its log says why",
        reason=Reason.INTERNAL,
    )


def _too_slow(stream: OutputStream) -> SlowReader:
    return SlowReader(
        f"{stream.num_buffered} tokens wait to be read, over the limit of "
        f"{stream.max_buffered_tokens}; read faster",
        {
            "buffered_tokens": str(stream.num_buffered),
            "max_buffered_tokens": str(stream.max_buffered_tokens),
        },
    )
