"""What an HTTP request ends with when something says no."""

import http
import logging
import math
import re
from collections.abc import Callable
from typing import Any

import grpc
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from protos.wire.printable import shown
from protos.wire.reason import Reason
from protos.wire.status import ErrorStatus, code_number
from router.errors import InvalidRequest, RequestError
from router.http.request_id import request_id

_STATUSES = {
    code_number(code): status
    for code, status in {
        grpc.StatusCode.INVALID_ARGUMENT: http.HTTPStatus.BAD_REQUEST,
        grpc.StatusCode.FAILED_PRECONDITION: http.HTTPStatus.SERVICE_UNAVAILABLE,
        grpc.StatusCode.OUT_OF_RANGE: http.HTTPStatus.BAD_REQUEST,
        grpc.StatusCode.UNAUTHENTICATED: http.HTTPStatus.UNAUTHORIZED,
        grpc.StatusCode.PERMISSION_DENIED: http.HTTPStatus.FORBIDDEN,
        grpc.StatusCode.NOT_FOUND: http.HTTPStatus.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED: http.HTTPStatus.TOO_MANY_REQUESTS,
        grpc.StatusCode.UNAVAILABLE: http.HTTPStatus.SERVICE_UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED: http.HTTPStatus.GATEWAY_TIMEOUT,
        grpc.StatusCode.UNIMPLEMENTED: http.HTTPStatus.NOT_IMPLEMENTED,
    }.items()
}
_FIELDS_OF_GRPC = re.compile(r"(?<!\S)(?:chat|sampling_params)\.(?=[a-z])")
"""Messages that the fields are in over gRPC, and not here."""
_OPENAI_CODES: dict[str, str] = {
    Reason.UNAUTHENTICATED: "invalid_api_key",
    Reason.RATE_LIMITED: "rate_limit_exceeded",
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.PROMPT_TOO_LONG: "context_length_exceeded",
}
"""Reasons that clients know under another name, and act on."""

_logger = logging.getLogger(__name__)


class HttpError(InvalidRequest):
    """A request that only HTTP can get wrong.

    Attributes:
        http_status: Its status.
    """

    def __init__(self, http_status: http.HTTPStatus, message: str, **metadata: str) -> None:
        super().__init__(message, metadata)
        self.http_status = http_status


class Refusal:
    """An error as an HTTP client gets it, whatever the form of its API.

    Attributes:
        http_status: The status.
        message: Names the field as the client has named it.
        reason: One of `Reason`, or what an engine has said.
        field: The field that is wrong, or empty.
        metadata: The numbers of the message by their names.
        retry_after: Whole seconds, or None.
        request_id: Of the request.
    """

    def __init__(self, error: Exception, request_id: str) -> None:
        if not isinstance(error, RequestError):
            error = RequestError("the router failed to process this request; its log says why")
        status = error.status
        self.http_status = _http_status(error, status)
        self.reason = status.reason
        self.field = _of_http(status.metadata.get("field", ""))
        self.message = _of_http(status.message)
        self.metadata = status.metadata
        self.retry_after = None if status.retry_after is None else math.ceil(status.retry_after)
        self.request_id = request_id

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer beside those of its content."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


ErrorForm = Callable[[Refusal], dict[str, Any]]
"""Returns an API's JSON object for an error."""


def must_be(
    field: str, value: object, rule: str, reason: Reason = Reason.BAD_REQUEST
) -> InvalidRequest:
    """Returns the error for a field whose value is not as a rule has it."""
    told = shown(str(value)) or "empty"
    return InvalidRequest(
        f"{field} is {told}; it must be {rule}",
        {"field": field, "value": told, "bounds": rule},
        reason=reason,
    )


def refused(error: Exception, scope: Scope) -> Refusal:
    """Returns what a client gets for an error, and logs it.

    It is a failure of the router unless it was raised on purpose.
    """
    refusal, path = Refusal(error, request_id(scope)), shown(scope["path"])
    if isinstance(error, RequestError):
        _logger.debug(
            "request refused request_id=%s path=%s reason=%s detail=%s",
            refusal.request_id,
            path,
            refusal.reason,
            refusal.message,
        )
    else:
        _logger.error(
            "request failed request_id=%s path=%s", refusal.request_id, path, exc_info=error
        )
    return refusal


def error_response(refusal: Refusal, form: ErrorForm) -> Response:
    """Returns the answer that is an error only."""
    return JSONResponse(form(refusal), refusal.http_status, refusal.headers)


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """Returns the error object of OpenAI's API."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    kind = "invalid_request_error" if refusal.http_status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.message,
            "type": kinds.get(refusal.http_status, kind),
            "param": refusal.field or None,
            "code": _OPENAI_CODES.get(refusal.reason, refusal.reason.lower()) or None,
        }
    }


def _http_status(error: Exception, status: ErrorStatus) -> int:
    if isinstance(error, HttpError):
        return error.http_status
    return _STATUSES.get(status.code, http.HTTPStatus.INTERNAL_SERVER_ERROR)


def _of_http(text: str) -> str:
    return _FIELDS_OF_GRPC.sub("", text)
