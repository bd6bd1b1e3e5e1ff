"""What a call ends with when something says no: the one mapping from errors to gRPC status."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_status import rpc_status

from engine_service.errors import RequestError
from protos.wire.reason import Reason
from protos.wire.status import ErrorStatus, error_status, to_rpc_status

DOMAIN = "pagestream.engine.v1"

_logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def to_error_status(error: RequestError) -> ErrorStatus:
    """Returns the status of an error that was raised on purpose."""
    return error_status(
        error.reason,
        error.message,
        domain=DOMAIN,
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


def as_request_error(error: Exception) -> RequestError:
    """Returns an error that a client may see; logs one that nobody foresaw."""
    if isinstance(error, RequestError):
        return error
    _logger.error("unexpected error", exc_info=error)
    return RequestError("internal error; the engine's log says more", reason=Reason.INTERNAL)


@contextlib.asynccontextmanager
async def reported_errors(context: Context) -> AsyncIterator[None]:
    """Ends the call with the status of whatever is raised inside; cancellation passes through."""
    try:
        yield
    except Exception as error:
        status = to_rpc_status(to_error_status(as_request_error(error)))
        await context.abort_with_status(rpc_status.to_status(status))
