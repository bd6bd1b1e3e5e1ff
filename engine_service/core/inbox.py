"""What comes from the server, taken in a little at a time, so that a burst holds no step up."""

import logging
import time
from typing import TYPE_CHECKING, Protocol

from engine_service.core.types import CoreInput, Failure, Request, StepOutput
from engine_service.errors import RequestError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

_SECONDS = 0.001
"""What a step may be held up by what comes in, to within one message or request."""

_IDLE_SECONDS = 0.5
"""How long nothing may come until the core says that it lives."""


class ServerGone(Exception):
    """The server has closed the connection."""


class Recipient(Protocol):
    """Who requests are for."""

    def add(self, request: Request) -> None:
        """Takes a request; raises RequestError if it can never be served."""

    def cancel(self, request_id: int) -> None:
        """Ends a request; one that is not open is passed over."""


class Inbox:
    """Requests that have come and were not yet taken, each with an ID of its own.

    Cancellations are passed on at once, as what they free may be needed for the next step.
    """

    def __init__(self, connection: "Connection[StepOutput, CoreInput]") -> None:
        self._connection = connection
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_tokens(self) -> int:
        """Tokens of the requests that were not taken yet, prompts and resumed ones."""
        return sum(
            len(request.prompt_token_ids) + len(request.resume_token_ids)
            for request in self._requests.values()
        )

    def deliver(self, recipient: Recipient, *, must_wait: bool) -> list[Failure]:
        """Passes on what has come, for about a millisecond; the rest waits for the next call.

        Args:
            recipient: Who gets it.
            must_wait: Whether to wait half a second for something to come, if nothing is left.

        Returns:
            The requests that were refused.

        Raises:
            ServerGone: The connection has ended.
        """
        if must_wait and not self._requests:
            if not self._connection.poll(_IDLE_SECONDS):
                return []
            self._receive(recipient)
        deadline = time.perf_counter() + _SECONDS
        while self._connection.poll():
            self._receive(recipient)
            if time.perf_counter() > deadline:
                break
        failures = []
        while self._requests:
            request = self._requests.pop(next(iter(self._requests)))
            try:
                recipient.add(request)
            except RequestError as error:
                failures.append(Failure(request_id=request.request_id, error=error))
            if time.perf_counter() > deadline:
                break
        return failures

    def _receive(self, recipient: Recipient) -> None:
        try:
            message = self._connection.recv()
        except (EOFError, ConnectionResetError):
            logger.info("server gone")
            raise ServerGone from None
        for request in message.requests:
            self._requests[request.request_id] = request
        for request_id in message.cancelled_ids:
            if self._requests.pop(request_id, None) is None:
                recipient.cancel(request_id)
