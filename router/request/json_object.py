"""Reads the objects that clients send as JSON text."""

import json
import re

from protos.wire.limits import MAX_JSON_DEPTH
from protos.wire.printable import shown
from protos.wire.reason import Reason
from router.errors import InvalidRequest

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+\\?(?:"|\Z)', re.DOTALL)
"""One that does not end counts as well, so that the search goes over each character once."""
_BRACKETS = re.compile(r"[\[{]+|[\]}]+")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(field: str, text: str) -> dict[str, object]:
    """Returns the object that a text of bounded size stands for; an empty text is an empty object.

    Raises:
        InvalidRequest: It is no JSON object, or too deep; the error names the field.
    """
    if not text:
        return {}
    depth = _depth(text)
    if depth > MAX_JSON_DEPTH:
        raise InvalidRequest(
            f"{field} has {depth} levels, outside 1 to {MAX_JSON_DEPTH}",
            {"field": field, "value": f"{depth} levels", "bounds": f"1 to {MAX_JSON_DEPTH}"},
            reason=Reason.BAD_CHAT,
        )
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        # Half of a character is no text, and no tokenizer takes it.
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _bad(field, text, f"cannot be read: {error!s:.200}") from None
    if not isinstance(value, dict):
        raise _bad(field, text, "is no object")
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for run in _BRACKETS.finditer(_STRING.sub("", text)):
        length = run.end() - run.start()
        depth += length if run[0][0] in "[{" else -length
        deepest = max(deepest, depth)
    return deepest


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"{text[:32]} is too large a number")
    return value


def _bad(field: str, text: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is {shown(text)}, which {why}; it must be a JSON object",
        {"field": field, "value": shown(text), "bounds": "a JSON object"},
        reason=Reason.BAD_CHAT,
    )
