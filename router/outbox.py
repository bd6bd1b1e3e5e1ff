"""What a router has to say to an engine, until its stream takes it."""

import asyncio
from dataclasses import dataclass, field

from protos.pagestream.engine.v1 import engine_pb2

_MAX_BATCH_BYTES = 4_000_000
"""Size of one message up, but for its last submission: far below the engines' message limit."""


@dataclass(slots=True)
class Outbox:
    """What the next message of a GenerateMany stream will carry.

    Attributes:
        submissions: New requests by handle; one that is cancelled before it was sent is taken out.
        cancelled: Handles to cancel.
        filled: Set while there is something to send.
    """

    submissions: dict[int, engine_pb2.Submission] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> engine_pb2.GenerateManyRequest:
        """Returns the next message, of bounded size."""
        message = engine_pb2.GenerateManyRequest(cancelled_handles=self.cancelled)
        self.cancelled.clear()
        num_bytes = 0
        while self.submissions and num_bytes < _MAX_BATCH_BYTES:
            submission = self.submissions.pop(next(iter(self.submissions)))
            num_bytes += submission.ByteSize()
            message.submissions.append(submission)
        if not self.submissions:
            self.filled.clear()
        return message
