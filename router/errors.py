"""The errors of the router.

ServiceError                base of all, in servicekit, as is StartupError
├── StartupError            the process cannot serve; exit code 2
└── RequestError            one request ends with it; `status` is what the client gets
    ├── InvalidRequest      the client must change the request
    ├── Unauthenticated     the client has shown no API key that is known
    ├── PermissionDenied    the client's API key does not allow what it asks for
    ├── UnknownModel        no engine reached so far serves a model of this name
    ├── NoTokenizer         the model accepts and returns token IDs only
    ├── NoEngine            no engine can take the request now
    ├── QueueFull           too many requests are in progress in this router or on its engines
    ├── RateLimited         the client's API key allows no more of that now
    ├── SlowReader          the client does not read its stream fast enough
    ├── Draining            the router is shutting down
    ├── TokenizerFailed     the tokenizer library failed on valid text or tokens
    └── EngineError         an engine's own error, passed through unchanged
        └── EngineLost      the connection to the engine broke, or there was none
"""

from functools import cached_property

from protos.wire.status import ErrorStatus, Reason
from servicekit import errors
from servicekit.errors import StartupError as StartupError
from servicekit.status import to_error_status

DOMAIN = "pagestream.router.v1"


class RequestError(errors.RequestError):
    """One request ends with this error.

    Attributes:
        status: What the client gets: code, message, reason, metadata and when to retry.
    """

    domain = DOMAIN

    @cached_property
    def status(self) -> ErrorStatus:  # noqa: D102
        return to_error_status(self)


class InvalidRequest(RequestError):
    """The client must change the request. The reason says which part is wrong."""

    reason = Reason.BAD_REQUEST


class Unauthenticated(RequestError):
    """The client has shown no API key that is known."""

    reason = Reason.UNAUTHENTICATED


class PermissionDenied(RequestError):
    """The client's API key does not allow what it asks for."""

    reason = Reason.PERMISSION_DENIED


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


class RateLimited(RequestError):
    """The client's API key allows no more requests or tokens now."""

    reason = Reason.RATE_LIMITED


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
        super().__init__(status.message, status.metadata, retry_after=status.retry_after)
        # Its reason may be one that this router does not know.
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the status, which is all that it is made of."""
        return (type(self), (self.status,))


class EngineLost(EngineError):
    """There is no connection to the engine; it may never have received the request."""
