"""Input from the server, read a little at a time so that a burst does not delay a step."""

import logging
import time
from typing import TYPE_CHECKING, Protocol

from engine_service.core.types import CoreInput, Failure, Request, StepOutput
from engine_service.errors import RequestError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

_SECONDS = 0.001
"""How long reading input may delay a step, to within one message or request."""

_IDLE_SECONDS = 0.5
"""How long the core waits for input before it sends a heartbeat."""


class ServerGone(Exception):
    """The server has closed the connection."""


class Recipient(Protocol):
    """Receives requests."""

    def add(self, request: Request) -> None:
        """Adds a request; raises RequestError if its ID is in use."""

    def cancel(self, request_id: int) -> None:
        """Ends a request; ignores one that is not open."""

    def describe_blocks(self, is_wanted: bool) -> None:
        """Describes cached blocks from now on, or no longer."""


class Inbox:
    """Requests that were received but not yet delivered, each with a unique ID.

    Cancellations are delivered at once, because the next step may need the blocks they free.
    """

    def __init__(self, connection: "Connection[StepOutput, CoreInput]") -> None:
        self._connection = connection
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_tokens(self) -> int:
        """Prompt and resumed tokens of the requests not yet delivered."""
        return sum(
            len(request.prompt_token_ids) + len(request.resume_token_ids)
            for request in self._requests.values()
        )

    def deliver(self, recipient: Recipient, *, must_wait: bool) -> list[Failure]:
        """Delivers input for about a millisecond; the rest waits for the next call.

        Args:
            recipient: Receives the requests and cancellations.
            must_wait: Whether to wait up to half a second for input if nothing is left.

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
        if message.describes_blocks is not None:
            recipient.describe_blocks(message.describes_blocks)
