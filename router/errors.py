"""The errors of the router.

RouterError                 base of all
├── StartupError            the process cannot serve; exit code 2
└── RequestError            one request ends with it; `status` is what the client gets
    ├── InvalidRequest      the client must change the request
    ├── UnknownModel        no engine reached so far serves a model of this name
    ├── NoTokenizer         the model accepts and returns token IDs only
    ├── NoEngine            no engine can take the request now
    ├── QueueFull           too many requests are in progress in this router or on its engines
    ├── SlowReader          the client does not read its stream fast enough
    ├── Draining            the router is shutting down
    ├── TokenizerFailed     the tokenizer library failed on valid text or tokens
    └── EngineError         an engine's own error, passed through unchanged
        └── EngineLost      the connection to the engine broke, or there was none
"""

from collections.abc import Mapping

from protos.wire.status import ErrorStatus, Reason, error_status

DOMAIN = "pagestream.router.v1"


class RouterError(Exception):
    """Base of all errors that the router raises on purpose."""


class StartupError(RouterError):
    """The process cannot serve; the message says how to fix it."""


class RequestError(RouterError):
    """One request ends with this error.

    Attributes:
        status: What the client gets: code, message, reason, metadata and when to retry.
    """

    reason: Reason = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        reason: Reason | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = error_status(
            reason or self.reason,
            message,
            domain=DOMAIN,
            metadata=metadata,
            retry_after=retry_after,
        )


class InvalidRequest(RequestError):
    """The client must change the request. The reason says which part is wrong."""

    reason = Reason.BAD_REQUEST


class UnknownModel(RequestError):
    """No engine reached so far serves a model of this name."""

    reason = Reason.UNKNOWN_MODEL


class NoTokenizer(RequestError):
    """The model's engines have no tokenizer that the router can use."""

    reason = Reason.NO_TOKENIZER


class NoEngine(RequestError):
    """No engine can take the request now."""

    reason = Reason.NO_ENGINE


class QueueFull(RequestError):
    """Too many requests are in progress in this router, or on every engine of the model."""

    reason = Reason.QUEUE_FULL


class SlowReader(RequestError):
    """The client reads too slowly, and its buffer is full."""

    reason = Reason.SLOW_READER


class Draining(RequestError):
    """The router finishes the requests in progress and accepts no new ones."""

    reason = Reason.DRAINING


class TokenizerFailed(RequestError):
    """The tokenizer library failed on text or tokens that it must accept."""


class EngineError(RequestError):
    """An engine's own error, passed through unchanged."""

    def __init__(self, status: ErrorStatus) -> None:
        super().__init__(status.message)
        self.status = status


class EngineLost(EngineError):
    """There is no connection to the engine; it may never have received the request."""
