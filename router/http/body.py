"""Reads the body of a request: bounded in bytes and time, and checked by a model of pydantic."""

import asyncio
import http
import json
import re
from typing import TypeVar

import numpy as np
import pydantic
import pydantic_core
from starlette.requests import ClientDisconnect, Request

from protos.wire.printable import shown
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.errors import HttpError
from router.http.outlet import outlet_of
from router.request.quota import Quota

_BODY_SECONDS = 60.0
_MAX_FAULTS = 3
"""Faults of a body that are told."""
_MAX_LISTED = 1000
"""Faults that are looked at; making objects of a million takes seconds."""

_MAX_CONTAINERS = 100_000
"""Lists and objects of a body; making as many takes a tenth of a second, all else far less."""

_LOOKS_TYPED = re.compile(r"[-+]?[0-9][0-9.eE+-]*|true|false|null")
"""Texts that could be taken for values of another type."""

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
    headers = dict(request.scope["headers"])
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_long(f"has {length.decode():.20} bytes", max_bytes)
    coding = headers.get(b"content-encoding", b"identity")
    if coding != b"identity":
        raise HttpError(
            http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"content-encoding is {shown(coding.decode('latin-1'))}; send the body as it is",
            field="content-encoding",
        )
    body, held = bytearray(), 0
    # A whole body needs no timer, and most are.
    seconds = None if outlet_of(request.scope).has_whole_request else _BODY_SECONDS
    try:
        async with asyncio.timeout(seconds):
            is_more = True
            while is_more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part, is_more = message["body"], message["more_body"]
                quota.take(len(part))
                held += len(part)
                if held > max_bytes:
                    raise _too_long(f"has over {max_bytes} bytes", max_bytes)
                # Not a list of parts: one of a byte would take fifty.
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
        InvalidRequest: It is none, has too many lists and objects, or has a field that is unknown,
            missing or wrong, which the error names.
    """
    if not body:
        text = "the body is empty; it must be a JSON object"
        raise InvalidRequest(text, reason=Reason.BAD_REQUEST)
    _check_containers(body)
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _invalid(error, body) from None


def _check_containers(body: bytes | bytearray) -> None:
    """Refuses a body of which the objects in memory would hold up everybody."""
    if body.count(b"[") + body.count(b"{") <= _MAX_CONTAINERS:
        return
    # A text may have any number of them.
    unescaped = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    is_text = np.logical_xor.accumulate(unescaped == ord('"'))
    is_begin = (unescaped == ord("[")) | (unescaped == ord("{"))
    number = int(np.count_nonzero(is_begin & ~is_text))
    if number > _MAX_CONTAINERS:
        bounds = f"0 to {_MAX_CONTAINERS}"
        raise InvalidRequest(
            f"the body has {number} lists and objects, outside {bounds}",
            {"field": "body", "value": str(number), "bounds": bounds},
            reason=Reason.BAD_REQUEST,
        )


def _too_long(how: str, max_bytes: int) -> HttpError:
    return HttpError(
        # Its name depends on the version of Python.
        http.HTTPStatus(413),
        f"the body {how}, outside 0 to {max_bytes}",
        field="body",
        bounds=f"0 to {max_bytes}",
    )


def _invalid(error: pydantic.ValidationError, body: bytes | bytearray) -> InvalidRequest:
    num_faults = error.error_count()
    if num_faults > _MAX_LISTED:
        text = f"the body has {num_faults} faults, too many to name"
        return InvalidRequest(text, {"field": "body"}, reason=Reason.BAD_REQUEST)
    faults = error.errors(include_url=False, include_context=False)
    is_json = faults[0]["type"] != "json_invalid"
    content = pydantic_core.from_json(body) if is_json else None
    told = [(_path(fault["loc"], fault["type"], content), fault) for fault in faults[:_MAX_FAULTS]]
    text = "; ".join(
        _fault(path, fault["type"], fault["msg"], fault["input"]) for path, fault in told
    )
    if num_faults > _MAX_FAULTS:
        text += f"; and {num_faults - _MAX_FAULTS} more"
    path, first = told[0]
    return InvalidRequest(
        text, {"field": path, "value": _shown(first["input"])}, reason=Reason.BAD_REQUEST
    )


def _fault(path: str, kind: str, message: str, value: object) -> str:
    # pydantic's words for what was in a list go on after a comma.
    message = message.partition(" after validation")[0]
    if not path:
        return f"the body is no JSON object that can be read: {message}"
    if kind == "extra_forbidden":
        return f"{path} is not a field of this request"
    if kind == "missing":
        return f"{path} is missing"
    return f"{path} is {_shown(value)}: {message[:1].lower()}{message[1:]}"


def _path(loc: tuple[int | str, ...], kind: str, content: object) -> str:
    """Returns where a fault is, without pydantic's names for the types that a field may have."""
    path = ""
    for number, step in enumerate(loc, 1):
        is_missing = kind == "missing" and number == len(loc)
        if isinstance(content, list) and isinstance(step, int):
            path, content = f"{path}[{step}]", content[step]
        elif isinstance(content, dict) and (step in content or is_missing):
            name = shown(str(step))
            path, content = f"{path}.{name}" if path else name, content.get(step)
    return path


def _shown(value: object) -> str:
    if isinstance(value, str):
        # A number in quotes is none.
        return shown(f'"{value}"' if _LOOKS_TYPED.fullmatch(value) else value) or "empty"
    if isinstance(value, bool | int | float | None):
        return shown(json.dumps(value))
    # Making a text of all that was sent may take long.
    return f"a list of {len(value)}" if isinstance(value, list) else "an object"
