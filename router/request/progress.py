"""The times and outcomes of requests, for metrics above this layer."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@contextmanager
def recorded(
    observer: RequestObserver, num_requests: int, timeout: float | None
) -> Iterator[list[Progress]]:
    """Tells an observer how requests begin and end that make one call.

    Args:
        observer: Whom to tell.
        num_requests: Their number.
        timeout: Seconds after which a call that is cancelled counts as too late; None is never.
    """
    now = time.monotonic()
    requests = [Progress(started=now, last_tokens=now) for _ in range(num_requests)]
    for _ in requests:
        observer.started()
    try:
        yield requests
    except RequestError as error:
        reason = error.status.reason.lower()
        for request in requests:
            request.outcome = reason if reason in OUTCOMES else "other"
        raise
    except (asyncio.CancelledError, GeneratorExit):
        is_late = timeout is not None and time.monotonic() - now >= timeout
        for request in requests:
            # After the last message the client may leave in any way.
            if request.outcome == _UNFINISHED:
                request.outcome = "deadline_exceeded" if is_late else "cancelled"
        raise
    finally:
        seconds = time.monotonic() - now
        for request in requests:
            observer.ended(request.outcome, seconds, request.num_tokens)
