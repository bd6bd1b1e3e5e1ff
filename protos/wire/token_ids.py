"""Copies long lists of numbers between messages and arrays, without a Python object for each.

Reading or writing a repeated field by iteration takes some 80 ns per element. For a million that
would block an event loop for too long. On the wire, the list has the same bytes as an array.
"""

import sys
from array import array
from typing import TYPE_CHECKING, TypeVar

from protos.wire.wire_format import packed, read_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

_MIN_COUNT = 512
"""Below this, iteration is faster."""

_Message = TypeVar("_Message", bound="Message")


def read_token_ids(message: "Message", name: str) -> "array[int]":
    """Returns the content of a `repeated fixed32` field, as an array of typecode "I"."""
    values: Sequence[int] = getattr(message, name)
    if len(values) < _MIN_COUNT or sys.byteorder != "little":
        return array("I", values)
    alone = type(message)()
    alone.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.name != name:
            alone.ClearField(field.name)
    alone.DiscardUnknownFields()
    content = alone.SerializeToString()
    token_ids = array("I")
    for _, _, begin, end in read_fields(content, 0, len(content)):
        token_ids.frombytes(content[begin:end])
    return token_ids


def add_token_ids(message: _Message, name: str, token_ids: "array[int]") -> _Message:
    """Appends an array to a `repeated fixed32` field, and returns the message.

    Args:
        message: The message to append to.
        name: Name of the field.
        token_ids: Typecode "I", or "i" without negative IDs.
    """
    _add(message, name, token_ids)
    return message


def add_floats(message: "Message", name: str, values: "array[float]") -> None:
    """Appends an array to a `repeated float` field.

    Args:
        message: The message to append to.
        name: Name of the field.
        values: Typecode "f".
    """
    _add(message, name, values)


def _add(message: "Message", name: str, values: "array[int] | array[float]") -> None:
    if len(values) < _MIN_COUNT or sys.byteorder != "little":
        getattr(message, name).extend(values)
        return
    number = message.DESCRIPTOR.fields_by_name[name].number
    message.MergeFromString(packed(number, values.tobytes()))
