"""Errors to what a call ends with. Whatever is not ours is INTERNAL, logged, and ends one call."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
from grpc_status import rpc_status

from protos.wire.status import ErrorStatus, Reason, error_status, to_rpc_status
from router.errors import DOMAIN, RequestError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_logger = logging.getLogger(__name__)

_ABORT_SECONDS = 1.0
"""What a client gets to take a status; it stands behind all that the client has not read."""

_CODES = {code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


@asynccontextmanager
async def errors_to_status(
    context: "grpc.aio.ServicerContext[_Request, _Response]", method: str
) -> AsyncIterator[None]:
    """Ends the call with the status of the error that its body raises, if any."""
    try:
        yield
    except RequestError as error:
        status = error.status
        _logger.debug("call refused method=%s reason=%s %s", method, status.reason, status.message)
        await _abort(context, status)
    # One call's fault must not be the service's.
    except Exception:
        _logger.exception("call failed method=%s", method)
        message = "the router failed on this request; its log says why"
        await _abort(context, error_status(Reason.INTERNAL, message, domain=DOMAIN))


async def _abort(
    context: "grpc.aio.ServicerContext[_Request, _Response]", status: ErrorStatus
) -> None:
    if status.code not in _CODES:
        # From a foreign engine; gRPC has no name for it.
        unknown: int = grpc.StatusCode.UNKNOWN.value[0]
        status = ErrorStatus(code=unknown, message=status.message, reason=status.reason)
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
