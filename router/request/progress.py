"""The times and outcomes of requests, for metrics above this layer."""

import asyncio
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from protos.wire.reason import Reason
from router.errors import RequestError

_UNFINISHED = "internal"
"""The outcome of a request when nothing else is known: an error of the router itself."""

OUTCOMES = ("stop", "length", "cancelled", "other", *(reason.value.lower() for reason in Reason))
"""How a request can end: finished, cancelled by its client, for one of our reasons, or another."""


class RequestObserver(Protocol):
    """Is notified of each request, for metrics above this layer.

    A request for n continuations is n requests. Times are in seconds.
    """

    def started(self) -> None:
        """A request arrived."""

    def ended(self, outcome: str, seconds: float, num_tokens: int) -> None:
        """The request ended with so many tokens; the outcome is one of `OUTCOMES`."""


class Observer(RequestObserver, Protocol):
    """Is notified of the stages of each request for one model."""

    def tokenized(self, seconds: float) -> None:
        """A text or a chat was tokenized."""

    def queued(self, num_prompt_tokens: int) -> None:
        """So many tokens more wait for an engine to start them, or fewer if it is below 0."""

    def handed_over(self, num_prompt_tokens: int, max_tokens: int | None) -> None:
        """A request, which asks for so many tokens at most, goes to the dispatcher."""

    def generated(self, num_tokens: int, seconds: float, *, is_first: bool) -> None:
        """Tokens arrived, `seconds` after the previous ones or the start of the request."""


class Observers(Protocol):
    """The observers of all models."""

    def of_model(self, name: str) -> Observer:
        """Returns that of a model which an engine serves."""

    def of_request(self, name: str) -> RequestObserver:
        """Returns that of requests for what no engine serves now."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Times of one request, in seconds of `time.monotonic`, and its outcome."""

    started: float
    last_tokens: float
    outcome: str = _UNFINISHED
    num_queued_tokens: int = 0
    """Tokens of its prompt that count as queued."""
    num_tokens: int = 0
    """Tokens that came."""

    def note_tokens(self, num_tokens: int, observer: Observer) -> None:
        """Notes that tokens came."""
        self.num_tokens += num_tokens
        now = time.monotonic()
        is_first = self.last_tokens == self.started
        observer.generated(num_tokens, now - self.last_tokens, is_first=is_first)
        self.last_tokens = now


class Recorded(AbstractContextManager[list[Progress]]):
    """Tells an observer how the requests of one call begin and, behind the block, how they end."""

    __slots__ = ("_observer", "_requests", "_started", "_timeout")

    def __init__(self, observer: RequestObserver, num_requests: int, timeout: float | None) -> None:
        """Tells nothing yet.

        Args:
            observer: Whom to tell.
            num_requests: Their number.
            timeout: Seconds after which a call that is cancelled counts as too late; None is never.
        """
        self._observer = observer
        self._timeout = timeout
        self._started = now = time.monotonic()
        self._requests = [Progress(started=now, last_tokens=now) for _ in range(num_requests)]

    def __enter__(self) -> list[Progress]:
        """Returns the times of each request."""
        for _ in self._requests:
            self._observer.started()
        return self._requests

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tells the end."""
        seconds = time.monotonic() - self._started
        if isinstance(error, RequestError):
            reason = error.status.reason.lower()
            for request in self._requests:
                request.outcome = reason if reason in OUTCOMES else "other"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            is_late = self._timeout is not None and seconds >= self._timeout
            for request in self._requests:
                # After the last message the client may leave in any way.
                if request.outcome == _UNFINISHED:
                    request.outcome = "deadline_exceeded" if is_late else "cancelled"
        for request in self._requests:
            self._observer.ended(request.outcome, seconds, request.num_tokens)
