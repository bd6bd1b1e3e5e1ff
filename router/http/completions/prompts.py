"""Reads the prompts of a completion: texts or token IDs, one or several."""

import reprlib
from array import array
from typing import Any

from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.errors import must_be
from router.types.prompts import TextPrompt, TokenPrompt

TOKENS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
}
"""What `read_token_ids` reads, as a JSON schema."""
PROMPTS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {**TOKENS_SCHEMA, "minItems": 1},
        {"type": "array", "items": {**TOKENS_SCHEMA, "minItems": 1}, "minItems": 1},
    ]
}
"""What `read_prompts` reads, as a JSON schema."""

_FORMS = "a text, a list of texts, a list of token IDs or a list of such lists"


def read_prompts(value: object, *, add_special_tokens: bool) -> list[TextPrompt | TokenPrompt]:
    """Returns the prompts in a value of JSON, at least one.

    Args:
        value: The field `prompt`.
        add_special_tokens: Whether texts get the tokens that the tokenizer adds around them.

    Raises:
        InvalidRequest: It is none, or one is empty; the error names the element.
    """
    if isinstance(value, list) and not set(map(type, value)) <= {int}:
        prompts = enumerate(value)
        return [_prompt(f"prompt[{index}]", one, add_special_tokens) for index, one in prompts]
    return [_prompt("prompt", value, add_special_tokens)]


def read_token_ids(field: str, values: list[object]) -> "array[int]":
    """Returns token IDs, typecode "I".

    Raises:
        InvalidRequest: One is not a whole number of 32 bits; the error names it.
    """
    # Looking at each in Python takes too long for a million.
    if set(map(type, values)) <= {int}:
        try:
            return array("I", values)  # type: ignore[arg-type]
        except OverflowError:
            pass
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**32:
            raise _bad(f"{field}[{index}]", value, f"a token ID, 0 to {2**32 - 1}")
    raise AssertionError("an array holds all token IDs")


def _prompt(field: str, value: object, add_special_tokens: bool) -> TextPrompt | TokenPrompt:
    if value in ("", []):
        raise InvalidRequest(f"{field} is empty", {"field": field}, reason=Reason.EMPTY_PROMPT)
    if isinstance(value, str):
        return TextPrompt(text=value, add_special_tokens=add_special_tokens, field=field)
    if isinstance(value, list):
        return TokenPrompt(token_ids=read_token_ids(field, value), field=field)
    raise _bad(field, value, _FORMS if field == "prompt" else "a text or a list of token IDs")


def _bad(field: str, value: object, rule: str) -> InvalidRequest:
    return must_be(field, reprlib.repr(value), rule)
