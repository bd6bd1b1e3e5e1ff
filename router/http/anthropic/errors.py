"""Errors in the form of Anthropic's API."""

import re
from typing import Any

from protos.wire.printable import shown
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.errors import Refusal

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    # Anthropic's own status is 529, which load balancers do not know; clients retry both alike.
    503: "overloaded_error",
    504: "timeout_error",
}
_NAMES = {
    "stop": "stop_sequences",
    "parameters": "input_schema",
    "grammar": "output_config.format.schema",
}
"""Names of fields over gRPC that have other names here."""
_NAME = re.compile(rf"\b(?:{'|'.join(_NAMES)})\b")

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


def bad(name: str, value: str, text: str) -> InvalidRequest:
    """Returns the error for a field, whose name the text goes on from."""
    metadata = {"field": name, "value": shown(value)}
    return InvalidRequest(f"{name} {text}", metadata, reason=Reason.BAD_CHAT)


def anthropic_error(refusal: Refusal) -> dict[str, Any]:
    """Returns the error object."""
    kind = "invalid_request_error" if refusal.http_status < 500 else "api_error"
    return {
        "type": "error",
        "error": {"type": _KINDS.get(refusal.http_status, kind), "message": _message(refusal)},
        "request_id": refusal.request_id,
    }


def _message(refusal: Refusal) -> str:
    if refusal.reason == Reason.PROMPT_TOO_LONG:
        return _too_long(refusal)
    if not refusal.field:
        return refusal.message
    if not refusal.message.startswith(refusal.field):
        return refusal.message
    behind = refusal.message.removeprefix(refusal.field)
    return _NAME.sub(lambda name: _NAMES[name[0]], refusal.field) + behind


def _too_long(refusal: Refusal) -> str:
    """Returns Anthropic's own words, by which clients know that they must send less."""
    num_prompt_tokens, most = map(refusal.metadata.get, ("num_prompt_tokens", "max_model_len"))
    if not (num_prompt_tokens and most and _NUMBER.fullmatch(most)):
        return f"prompt is too long: {refusal.message}"
    # One token is left for the answer.
    return f"prompt is too long: {num_prompt_tokens} tokens > {int(most) - 1} maximum"
