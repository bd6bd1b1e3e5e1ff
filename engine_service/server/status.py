"""Maps exceptions to the gRPC status of a call."""

import logging
from contextlib import AbstractAsyncContextManager

from engine_service.errors import RequestError
from protos.wire.status import ErrorStatus
from servicekit import status
from servicekit.status import Context

_logger = logging.getLogger(__name__)


def errors_to_status(context: Context, method: str) -> AbstractAsyncContextManager[None]:
    """Ends the call with the status of the error that its body raises, if any."""
    return status.ErrorsToStatus(context, method, _to_status)


def as_request_error(error: Exception) -> RequestError:
    """Returns an error that a client may see; logs an unexpected one."""
    if not isinstance(error, RequestError):
        _logger.error("request failed", exc_info=error)
    return _shown(error)


def _to_status(error: Exception) -> ErrorStatus:
    return status.to_error_status(_shown(error))


def _shown(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError("the engine failed to process this request; its log says why")
