"""Maps exceptions to gRPC statuses; all services use this one mapping."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
from grpc_status import rpc_status

from protos.wire.status import ErrorStatus, error_status, to_rpc_status
from servicekit.errors import RequestError

_ABORT_SECONDS = 1.0
"""Time for a client to read a status; it is queued behind everything the client has not read."""

_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]
_CODES = {code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK}

Context = grpc.aio.ServicerContext[Any, Any]

_logger = logging.getLogger(__name__)


def to_error_status(error: RequestError) -> ErrorStatus:
    """Returns the status of an error that was raised on purpose."""
    return error_status(
        error.reason,
        error.message,
        domain=error.domain,
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


class ErrorsToStatus(contextlib.AbstractAsyncContextManager[None]):
    """Ends the call with the status of the error that its body raises, if any.

    Cancellation passes through.
    """

    __slots__ = ("_context", "_method", "_to_status")

    def __init__(
        self, context: Context, method: str, to_status: Callable[[Exception], ErrorStatus]
    ) -> None:
        """Does nothing yet.

        Args:
            context: The call's context.
            method: Its name, for the log.
            to_status: Returns the status that the client may see, also for an unexpected error.
        """
        self._context = context
        self._method = method
        self._to_status = to_status

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Returns whether there was an error."""
        # A failing call must not fail the service.
        if not isinstance(error, Exception):
            return False
        status = self._to_status(error)
        if isinstance(error, RequestError):
            _logger.debug(
                "call refused method=%s reason=%s detail=%s",
                self._method,
                status.reason,
                status.message,
            )
        else:
            _logger.error("call failed method=%s", self._method, exc_info=error)
        await _abort(self._context, status)
        return True


async def _abort(context: Context, status: ErrorStatus) -> None:
    if status.code not in _CODES:
        # From a foreign service; gRPC has no name for it.
        status = ErrorStatus(code=_UNKNOWN, message=status.message, reason=status.reason)
    final = rpc_status.to_status(to_rpc_status(status))
    try:
        async with asyncio.timeout(_ABORT_SECONDS):
            await context.abort(final.code, final.details, final.trailing_metadata)
    except TimeoutError:
        # gRPC keeps the status for the client; the handler may end.
        _logger.debug("status not read yet reason=%s", status.reason)
    except grpc.aio.InternalError:
        # The client is gone, or has not read even the first message; nothing more can be sent.
        _logger.debug("status not sent reason=%s", status.reason)
