"""What a call of the router ends with when something says no."""

from contextlib import AbstractAsyncContextManager

from protos.wire.status import ErrorStatus
from router.errors import RequestError
from servicekit import status
from servicekit.status import Context


def errors_to_status(context: Context, method: str) -> AbstractAsyncContextManager[None]:
    """Ends the call with the status of the error that its body raises, if any."""
    return status.ErrorsToStatus(context, method, _to_status)


def _to_status(error: Exception) -> ErrorStatus:
    if isinstance(error, RequestError):
        return error.status
    return RequestError("the router failed to process this request; its log says why").status
