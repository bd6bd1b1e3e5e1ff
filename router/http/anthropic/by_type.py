"""Objects of a request that are told apart by one of their fields."""

from collections.abc import Mapping
from typing import Union

import pydantic
from pydantic_core import PydanticCustomError

from protos.wire.printable import shown
from router.http.sampling import Fields


def by_type(
    kinds: Mapping[str, type[Fields]], *, key: str = "type", default: str | None = None
) -> pydantic.PlainValidator:
    """Returns a validator of objects of these kinds.

    Unlike pydantic's own discriminator, it leaves the type out of the paths in errors.

    Args:
        kinds: The models by the type of their objects.
        key: What the type is called.
        default: The type of an object that has none.
    """

    def choose(value: object) -> Fields:
        if not isinstance(value, dict):
            raise PydanticCustomError("object_type", "it must be an object")
        kind = value.get(key)
        if kind is None:
            kind = default
        model = kinds.get(kind) if isinstance(kind, str) else None
        if model is None:
            what = {
                "kind": f"no {key}" if kind is None else f"the {key} {shown(str(kind))}",
                "known": ", ".join(kinds),
            }
            raise PydanticCustomError("unsupported", "it has {kind}; supported are {known}", what)
        return model.model_validate(value)

    return pydantic.PlainValidator(
        choose,
        json_schema_input_type=Union[tuple(kinds.values())],  # noqa: UP007
    )
