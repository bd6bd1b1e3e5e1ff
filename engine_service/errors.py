"""Everything that an engine says no with.

EngineError                 base of all; `message` for a person, `metadata` for a program
├── StartupError            the process cannot serve; exit code 2
└── RequestError            one request (or stream) ends with it; `reason` names it on the wire
    ├── InvalidRequest      the client must change the request
    ├── QueueFull           come back after `retry_after` seconds, or go elsewhere
    ├── SlowReader          the client does not read what it asked for
    ├── DeadlineExceeded    the request's own time limit passed
    ├── Starting            the model is not loaded yet
    ├── Draining            the engine is about to exit
    ├── EpochMismatch       the router means another start of an engine
    ├── EngineFailed        the engine lost its core or a rank
    └── NoTokenizer         the model folder holds no tokenizer files
"""

from collections.abc import Mapping

from protos.wire.reason import Reason


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StartupError(EngineError):
    """The process cannot serve; the message says what to do."""


class RequestError(EngineError):
    """One request ends with this error.

    Attributes:
        reason: Names the error on the wire and decides the gRPC status code.
        metadata: Every number and name of the message, for programs.
        retry_after: Seconds after which the same request may succeed here, or None.
    """

    reason: Reason

    def __init__(
        self,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        reason: Reason | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        if reason is not None:
            self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross the boundary between core and server."""
        return (_rebuild, (type(self), self.message, self.metadata, self.reason, self.retry_after))


def _rebuild(
    kind: type[RequestError],
    message: str,
    metadata: dict[str, str],
    reason: Reason,
    retry_after: float | None,
) -> RequestError:
    return kind(message, metadata, reason=reason, retry_after=retry_after)


class InvalidRequest(RequestError):
    """The client must change the request. The reason says which part is wrong."""

    reason = Reason.BAD_REQUEST


class QueueFull(RequestError):
    """Too many requests wait here already."""

    reason = Reason.QUEUE_FULL


class SlowReader(RequestError):
    """The client reads too slowly and its buffer is full."""

    reason = Reason.SLOW_READER


class DeadlineExceeded(RequestError):
    """The time limit that the request brought along has passed."""

    reason = Reason.DEADLINE_EXCEEDED


class Starting(RequestError):
    """The model is not loaded yet."""

    reason = Reason.STARTING


class Draining(RequestError):
    """The engine finishes what it has and takes nothing new."""

    reason = Reason.DRAINING


class EpochMismatch(RequestError):
    """The router means another start of an engine, perhaps of another model."""

    reason = Reason.EPOCH_MISMATCH


class EngineFailed(RequestError):
    """The engine lost its core or one of its ranks."""

    reason = Reason.ENGINE_FAILED


def core_lost() -> EngineFailed:
    """Returns what every call gets once the core's process is gone."""
    return EngineFailed("the engine's core process has ended; try another engine")


def invalid_logits(position: int) -> RequestError:
    """Returns what a request gets whose next token, at this position, cannot be drawn."""
    return RequestError(
        f"the model's logits for position {position} are NaN or infinite, so that no token can be "
        "drawn; its weights or its dtype are at fault",
        {"position": str(position)},
        reason=Reason.INTERNAL,
    )


def core_frozen() -> EngineFailed:
    """Returns what every call gets while the core's process gives no sign of life."""
    return EngineFailed("the engine's core process gives no sign of life; try another engine")


class NoTokenizer(RequestError):
    """The model folder holds no tokenizer files."""

    reason = Reason.NO_TOKENIZER
