"""What a router has to send to an engine, until the stream takes it."""

import asyncio

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.channel import MAX_SUBMISSION_BYTES
from protos.wire.limits import MAX_CANCELLED_HANDLES, MAX_SUBMISSIONS
from router.errors import InvalidRequest

_MAX_BATCH_BYTES = 1024 * 1024
"""The largest message to an engine that has more than one submission."""


class Outbox:
    """The contents of the next messages of a GenerateMany stream.

    Attributes:
        filled: Set while there is something to send.
    """

    def __init__(self) -> None:
        self.filled = asyncio.Event()
        self._submissions: dict[int, tuple[engine_pb2.Submission, int]] = {}
        self._cancelled: list[int] = []

    def submit(self, submission: engine_pb2.Submission) -> None:
        """Adds a submission.

        Raises:
            InvalidRequest: It is larger than an engine accepts; sending it would end the stream of
                all requests.
        """
        num_bytes = submission.ByteSize()
        if num_bytes > MAX_SUBMISSION_BYTES:
            raise InvalidRequest(
                f"the request takes {num_bytes} bytes in a message to an engine, over the limit of "
                f"{MAX_SUBMISSION_BYTES}",
                {
                    "field": "request",
                    "value": str(num_bytes),
                    "bounds": f"0 to {MAX_SUBMISSION_BYTES}",
                },
            )
        self._submissions[submission.handle] = (submission, num_bytes)
        self.filled.set()

    def cancel(self, handle: int) -> bool:
        """Cancels a request on the engine. Returns whether it was sent; if not, it never is."""
        if self._submissions.pop(handle, None) is not None:
            return False
        self._cancelled.append(handle)
        self.filled.set()
        return True

    def take(self) -> engine_pb2.GenerateManyRequest:
        """Returns the next message, within the bounds of what an engine accepts."""
        message = engine_pb2.GenerateManyRequest(
            cancelled_handles=self._cancelled[:MAX_CANCELLED_HANDLES]
        )
        del self._cancelled[:MAX_CANCELLED_HANDLES]
        batch_bytes = 0
        while self._submissions and len(message.submissions) < MAX_SUBMISSIONS:
            handle, (submission, num_bytes) = next(iter(self._submissions.items()))
            batch_bytes += num_bytes
            if message.submissions and batch_bytes > _MAX_BATCH_BYTES:
                break
            del self._submissions[handle]
            message.submissions.append(submission)
        if not (self._submissions or self._cancelled):
            self.filled.clear()
        return message
