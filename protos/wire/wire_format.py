"""Reads the fields of a serialized message without knowing their meaning."""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; those of groups are refused, since our contracts have none."""

_MAX_VARINT_BYTES = 10


class BadWireFormat(Exception):
    """The bytes are not a valid list of fields."""


def read_fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields number, wire type, begin and end of each field's value between two positions.

    Raises:
        BadWireFormat: The bytes are not valid fields, or contain a group.
    """
    position = start
    while position < end:
        tag = data[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_varint(data, position - 1, end)
        wire_type = tag & 7
        begin = position
        if wire_type == BYTES and position < end:
            size = data[position]
            begin = position + 1
            if size > 0x7F:
                size, begin = _read_varint(data, position, end)
            position = begin + size
        elif wire_type == FIXED32:
            position += 4
        elif wire_type == FIXED64:
            position += 8
        elif wire_type == VARINT:
            _, position = _read_varint(data, position, end)
        else:
            raise BadWireFormat
        if position > end or tag < 8:
            raise BadWireFormat
        yield tag >> 3, wire_type, begin, position


def packed(number: int, values: bytes) -> bytes:
    """Returns a length-delimited field with these bytes, such as a packed list of numbers."""
    return _varint(number << 3 | BYTES) + _varint(len(values)) + values


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    last = min(end, position + _MAX_VARINT_BYTES)
    while position < last:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise BadWireFormat


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)
