"""The places of requests in progress."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from protos.wire.reason import Reason
from router.errors import Draining, QueueFull
from router.request import limits
from router.request.quota import Quota


class Slots:
    """Counts the requests in progress and their bytes, and refuses what would be too much."""

    def __init__(self, max_requests: int, request_bytes: Quota) -> None:
        """Has no request in progress.

        Args:
            max_requests: The most that may be.
            request_bytes: Counts the bytes of their messages.
        """
        self._max_requests = max_requests
        self._request_bytes = request_bytes
        self._num_taken = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def taken(self, num_bytes: int, num_requests: int = 1) -> Iterator[None]:
        """Holds the places of requests that came in one message, within the block.

        Raises:
            Draining: No new requests are taken.
            InvalidRequest: They could never be in progress at once.
            QueueFull: They are too many, or too large, beside the others.
        """
        if self._is_draining:
            raise Draining("the router is shutting down; send the request to another router")
        bound = self._max_requests
        if num_requests > bound:
            raise limits.outside(
                "n",
                num_requests,
                f"1 to max_concurrent_requests {bound}",
                Reason.BAD_SAMPLING_PARAMS,
            )
        if self._num_taken + num_requests > bound:
            raise QueueFull(
                f"{self._num_taken} requests are in progress, with {num_requests} more over "
                f"max_concurrent_requests {bound}",
                {"max_concurrent_requests": str(bound)},
                retry_after=1.0,
            )
        self._request_bytes.take(num_bytes)
        self._num_taken += num_requests
        self._idle.clear()
        try:
            yield
        finally:
            self._request_bytes.give_back(num_bytes)
            self._num_taken -= num_requests
            if not self._num_taken:
                self._idle.set()

    def drain(self) -> None:
        """Refuses all new requests from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Waits until no request is in progress."""
        await self._idle.wait()
