"""Errors to what a call ends with: the one way from an exception to a gRPC status."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from protos.wire.status import ErrorStatus, error_status, to_rpc_status
from servicekit.errors import RequestError

_ABORT_SECONDS = 1.0
"""What a client gets to take a status; it stands behind all that the client has not read."""

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


@contextlib.asynccontextmanager
async def errors_to_status(
    context: Context,
    method: str,
    to_status: Callable[[Exception], ErrorStatus],
) -> AsyncIterator[None]:
    """Ends the call with the status of the error that its body raises, if any.

    Cancellation passes through.

    Args:
        context: Of the call.
        method: Its name, for the log.
        to_status: Returns what the client may see of an error, also of one that nobody foresaw.
    """
    try:
        yield
    # One call's fault must not be the service's.
    except Exception as error:
        status = to_status(error)
        if isinstance(error, RequestError):
            reason, message = status.reason, status.message
            _logger.debug("call refused method=%s reason=%s %s", method, reason, message)
        else:
            _logger.error("call failed method=%s", method, exc_info=error)
        await _abort(context, status)


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
        _logger.debug("status not taken yet reason=%s", status.reason)
    except grpc.aio.InternalError:
        # The client is gone, or has left even the first message unread; more cannot be said.
        _logger.debug("status not sent reason=%s", status.reason)
