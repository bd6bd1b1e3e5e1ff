"""Values of a request that have one of several forms, and those that are refused with a reason.

The tags of the forms are in round brackets, so that they are not taken for fields.
"""

from collections.abc import Callable, Mapping
from typing import Union

import pydantic
from pydantic_core import PydanticCustomError

from protos.wire.printable import shown

TEXT, LIST, OBJECT = "(text)", "(list)", "(object)"

text_or_list = pydantic.Discriminator(
    lambda value: TEXT if isinstance(value, str) else LIST if isinstance(value, list) else None,
    custom_error_type="text_or_list",
    custom_error_message="Input should be a valid string or array",
)
"""Tells the forms tagged `TEXT` and `LIST` apart, so that only faults of that one are told."""

text_or_object = pydantic.Discriminator(lambda value: TEXT if isinstance(value, str) else OBJECT)
"""Tells the forms tagged `TEXT` and `OBJECT` apart."""


def by_type(
    kinds: Mapping[str, type[pydantic.BaseModel] | str],
    *,
    key: str = "type",
    default: str | None = None,
    why: str = "",
) -> pydantic.PlainValidator:
    """Returns a validator of objects of these kinds.

    Unlike pydantic's own discriminator, it leaves the type out of the paths in errors.

    Args:
        kinds: The models by the type of their objects, or why a known type is refused.
        key: What the type is called.
        default: The type of an object that has none.
        why: What the client is told of all other types.
    """
    models = {kind: model for kind, model in kinds.items() if not isinstance(model, str)}
    rule = ", ".join(models) + (why and f"; {why}")

    def choose(value: object) -> pydantic.BaseModel:
        if not isinstance(value, dict):
            raise PydanticCustomError("object_type", "Input should be an object")
        kind = value.get(key)
        if kind is None:
            kind = default
        model = kinds.get(kind) if isinstance(kind, str) else None
        if isinstance(model, str):
            raise PydanticCustomError("refused", "{why}", {"why": model})
        if model is None:
            what = {"kind": f"no {key}" if kind is None else f"the {key} {shown(str(kind))}"}
            told = {**what, "rule": rule}
            raise PydanticCustomError("unsupported", "it has {kind}; supported are {rule}", told)
        return model.model_validate(value)

    return pydantic.PlainValidator(
        choose,
        json_schema_input_type=Union[tuple(models.values())],  # noqa: UP007
    )


def refused(why: str, *harmless: object) -> pydantic.BeforeValidator:
    """Refuses every value but None and those that ask for nothing.

    Args:
        why: What the client is told after the value.
        harmless: Values that may be sent.
    """
    return pydantic.BeforeValidator(_refusing(why, harmless))


def _refusing(why: str, harmless: tuple[object, ...]) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value is None or value in harmless:
            return value
        raise PydanticCustomError("refused", "{why}", {"why": why})

    return check
