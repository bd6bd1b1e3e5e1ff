"""Base classes of the errors that our services raise on purpose.

ServiceError            base of all
├── StartupError        the process cannot serve; exit code 2
└── RequestError        one request ends with it; each service has its own kinds
"""

from collections.abc import Mapping
from typing import ClassVar, Self

from protos.wire.reason import Reason


class ServiceError(Exception):
    """Base of all errors that a service raises on purpose.

    Attributes:
        message: One line for a person.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StartupError(ServiceError):
    """The process cannot serve; the message says what to do."""


class RequestError(ServiceError):
    """One request ends with this error. It can be pickled.

    Attributes:
        domain: Domain of the reason, such as "pagestream.engine.v1"; each service sets its own.
        reason: Names the error on the wire and decides the gRPC status code.
        metadata: Every number and name of the message, for programs.
        retry_after: Seconds after which the same request may succeed, or None.
    """

    domain: ClassVar[str]
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
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        if reason is not None:
            self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the constructor's arguments; the default would keep only the text."""
        arguments = (self.message, self.metadata, self.reason, self.retry_after)
        return (type(self)._rebuild, arguments)

    @classmethod
    def _rebuild(
        cls,
        message: str,
        metadata: dict[str, str],
        reason: Reason,
        retry_after: float | None,
    ) -> Self:
        return cls(message, metadata, reason=reason, retry_after=retry_after)
