"""Reads the body of a request: bounded in bytes and time, and checked by a model of pydantic."""

import asyncio
import http
from typing import TypeVar

import pydantic
from starlette.requests import ClientDisconnect, Request

from protos.wire.printable import shown
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.errors import HttpError
from router.request.quota import Quota

_BODY_SECONDS = 60.0
_MAX_FAULTS = 3
"""Faults of a body that are told."""

Model = TypeVar("Model", bound=pydantic.BaseModel)


async def read_body(request: Request, max_bytes: int, quota: Quota) -> bytearray:
    """Returns the whole body.

    Args:
        request: The request.
        max_bytes: The most bytes that it may have.
        quota: Counts the bytes of all bodies that are being read.

    Raises:
        HttpError: It is too long, is compressed, or does not come in time.
        QueueFull: Too many bytes are held already.
        ClientDisconnect: The client has left.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_long(f"has {length:.20} bytes", max_bytes)
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise HttpError(
            http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"content-encoding is {shown(coding)}; send the body as it is",
            field="content-encoding",
        )
    # Not a list of parts: one of a byte would take fifty.
    body, held = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                quota.take(len(part))
                held += len(part)
                if held > max_bytes:
                    raise _too_long(f"has over {max_bytes} bytes", max_bytes)
                body += part
    except TimeoutError:
        raise HttpError(
            http.HTTPStatus.REQUEST_TIMEOUT,
            f"the body has not come within {_BODY_SECONDS:g} s",
        ) from None
    finally:
        quota.give_back(held)
    return body


def parse_body(model: type[Model], body: bytes | bytearray) -> Model:
    """Reads a JSON object.

    Raises:
        InvalidRequest: It is none, or has a field that is unknown, missing or wrong, which the
            error names.
    """
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _invalid(error) from None


def _too_long(how: str, max_bytes: int) -> HttpError:
    return HttpError(
        http.HTTPStatus.CONTENT_TOO_LARGE
        if hasattr(http.HTTPStatus, "CONTENT_TOO_LARGE")
        else http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body {how}, outside 0 to {max_bytes}",
        field="body",
        bounds=f"0 to {max_bytes}",
    )


def _invalid(error: pydantic.ValidationError) -> InvalidRequest:
    faults = error.errors(include_url=False, include_context=False)
    texts = [_fault(fault["loc"], fault["type"], fault["msg"], fault["input"]) for fault in faults]
    told = "; ".join(texts[:_MAX_FAULTS])
    if len(texts) > _MAX_FAULTS:
        told += f"; and {len(texts) - _MAX_FAULTS} more"
    first = faults[0]
    return InvalidRequest(
        told,
        {"field": _path(first["loc"]), "value": shown(str(first["input"]))},
        reason=Reason.BAD_REQUEST,
    )


def _fault(loc: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    path = _path(loc)
    if not loc:
        return f"the body is no JSON object that can be read: {message}"
    if kind == "extra_forbidden":
        return f"{path} is not a field of this request"
    if kind == "missing":
        return f"{path} is missing"
    return f"{path} is {shown(str(value))}: {message[:1].lower()}{message[1:]}"


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return path


__all__ = ["ClientDisconnect", "parse_body", "read_body"]
