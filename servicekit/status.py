"""Maps exceptions to gRPC statuses; all services use this one mapping."""

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


@contextlib.asynccontextmanager
async def errors_to_status(
    context: Context,
    method: str,
    to_status: Callable[[Exception], ErrorStatus],
) -> AsyncIterator[None]:
    """Ends the call with the status of the error that its body raises, if any.

    Cancellation passes through.

    Args:
        context: The call's context.
        method: Its name, for the log.
        to_status: Returns the status that the client may see, also for an unexpected error.
    """
    try:
        yield
    # A failing call must not fail the service.
    except Exception as error:
        status = to_status(error)
        if isinstance(error, RequestError):
            reason, message = status.reason, status.message
            _logger.debug("call refused method=%s reason=%s detail=%s", method, reason, message)
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
        _logger.debug("status not read yet reason=%s", status.reason)
    except grpc.aio.InternalError:
        # The client is gone, or has not read even the first message; nothing more can be sent.
        _logger.debug("status not sent reason=%s", status.reason)
