"""Values of a request that have one of several forms, and those that are refused with a reason.

The tags of the forms are in round brackets, so that they are not taken for fields.
"""

from collections.abc import Callable, Mapping

import pydantic
import pydantic_core

from protos.wire.printable import shown

TEXT, LIST, OTHER = "(text)", "(list)", "(other)"

text_or_list = pydantic.Discriminator(
    lambda value: TEXT if isinstance(value, str) else LIST if isinstance(value, list) else None,
    custom_error_type="text_or_list",
    custom_error_message="Input should be a valid string or array",
)
"""Tells the forms tagged `TEXT` and `LIST` apart."""


def by_type(*types: str, untyped: str = OTHER) -> pydantic.Discriminator:
    """Tells objects apart by their `type`, which is the tag in round brackets.

    Args:
        types: The known ones; the tag of all others is `OTHER`.
        untyped: The tag of what has no type.
    """
    tags = {name: f"({name})" for name in types}

    def tag(value: object) -> str:
        kind = None
        if isinstance(value, Mapping):
            kind = value.get("type")
        elif isinstance(value, pydantic.BaseModel):
            # It has been read, and is written again.
            kind = getattr(value, "type", None)
        if kind is None:
            return untyped
        return tags.get(kind, OTHER) if isinstance(kind, str) else OTHER

    return pydantic.Discriminator(tag)


def refused(why: str, *harmless: object) -> pydantic.BeforeValidator:
    """Refuses every value but None and those that ask for nothing.

    Args:
        why: What the client is told after the value.
        harmless: Values that may be sent.
    """
    return pydantic.BeforeValidator(_refusing(why, harmless))


def other_type(rule: str) -> pydantic.BeforeValidator:
    """Refuses an object by its `type`, and says which it must be."""

    def refuse(value: object) -> object:
        kind = value.get("type") if isinstance(value, Mapping) else value
        told = {"kind": shown(str(kind)), "rule": rule}
        raise pydantic_core.PydanticCustomError("type", "type is {kind}; it must be {rule}", told)

    return pydantic.BeforeValidator(refuse)


def _refusing(why: str, harmless: tuple[object, ...]) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value is None or value in harmless:
            return value
        raise pydantic_core.PydanticCustomError("refused", "{why}", {"why": why})

    return check
