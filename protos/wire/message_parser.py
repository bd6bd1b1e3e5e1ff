"""Parses a peer's messages, and checks them against `FIELD_BOUNDS` before building from them.

A small message is parsed first and counted afterwards, since its size bounds the result. (Strings
inside its lists are not checked one by one.) In a large message, the fields are counted on the wire
up to the first exceeded bound, so that the work depends on the bounds and not on what was sent.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from protos.wire.field_bounds import FIELD_BOUNDS, FieldBound
from protos.wire.reason import Reason
from protos.wire.wire_format import BYTES, FIXED32, FIXED64, BadWireFormat, read_fields

SMALL_BYTES = 64 * 1024
"""Parsing this much takes half a millisecond at worst."""
_TINY_BYTES = 64
"""A message in a list of at most this size, without lists of its own, is not inspected."""
MAX_SURPLUS_FIELDS = 1024
"""Fields of one message that are unknown, given more than once, or not packed."""

_MAX_EXPLAINED_BYTES = 4096
"""In an invalid message of up to this size, the wrong field is searched for."""
_WIDTHS = {
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_DOUBLE: 8,
}

_Message = TypeVar("_Message", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """Replaces a refused message, and says why.

    Attributes:
        text: Names the field, the value and the bound.
        metadata: The same for programs.
        reason: The error reason of the call.
    """

    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    reason: Reason = Reason.BAD_REQUEST


class MessageParser(Generic[_Message]):
    """Parses messages of one type; a gRPC deserializer that never raises."""

    def __init__(self, message_class: type[_Message]) -> None:
        self._class = message_class
        self._schema = _schema_of(message_class.DESCRIPTOR)
        self._least_excess = self._schema.least_excess

    def __call__(self, data: bytes) -> _Message | Malformed:
        """Returns the message, or why it was refused."""
        is_small = len(data) <= SMALL_BYTES
        try:
            if not is_small:
                _Counting(data).count(0, len(data), self._schema, {}, "")
            message = self._class.FromString(data)
            if is_small and len(data) >= self._least_excess:
                return _find_excess(message, self._schema, "", len(data)) or message
            return message
        except (DecodeError, BadWireFormat):
            return self._explain(data)
        except _Refused as refused:
            return refused.malformed

    def _explain(self, data: bytes) -> Malformed:
        name = self._class.DESCRIPTOR.full_name
        try:
            if len(data) <= _MAX_EXPLAINED_BYTES:
                _Counting(data, checks_utf8=True).count(0, len(data), self._schema, {}, "")
        except BadWireFormat:
            pass
        except _Refused as refused:
            return refused.malformed
        return Malformed(
            text=f"a message of {len(data)} bytes cannot be parsed as {name}",
            metadata={"field": name, "value": f"{len(data)} bytes"},
        )


def max_bytes(message_class: type[Message]) -> int:
    """Returns the size of the largest message within the bounds, without surplus fields."""
    return _max_bytes(cast("Descriptor", message_class.DESCRIPTOR))


def _max_bytes(descriptor: Descriptor) -> int:
    return sum(_max_field_bytes(one) for one in descriptor.fields)


def _max_field_bytes(one: FieldDescriptor) -> int:
    bound = FIELD_BOUNDS.get(one.full_name, FieldBound())
    if one.message_type is not None:
        return bound.entries * (_max_bytes(one.message_type) + 8)
    if one.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return bound.entries * (bound.bytes + 8)
    return bound.entries * _WIDTHS.get(one.type, 10) + 8


class _Refused(Exception):
    def __init__(self, malformed: Malformed) -> None:
        super().__init__(malformed.text)
        self.malformed = malformed


@dataclass(kw_only=True)
class _Field:
    """Properties of one field of a message type."""

    name: str
    number: int
    is_repeated: bool
    bound: FieldBound
    width: int
    """The fewest bytes of one number on the wire; 0 if it is not a number."""
    is_text: bool = False
    is_bytes: bool = False
    schema: "_Schema | None" = None
    """The type of the messages that it contains."""

    @functools.cached_property
    def has_lists(self) -> bool:
        """Whether its messages contain lists; their strings are bounded by the message size."""
        return self.schema is not None and not self.schema.is_flat

    @functools.cached_property
    def least_excess(self) -> int:
        """Bytes of the smallest value that exceeds the bound."""
        least = self.bound.bytes + 1 if self.is_bytes else SMALL_BYTES
        # Strings in messages of a list are checked only if these contain lists.
        if self.schema is not None and (self.has_lists or not self.is_repeated):
            least = self.schema.least_excess
        if self.is_repeated:
            least = min(least, (self.bound.entries + 1) * (self.width or 2))
        return least


@dataclass(slots=True)
class _Schema:
    """Properties of a message type.

    Attributes:
        fields: Fields by number.
        bounded: Fields whose bound a small message can exceed.
        is_flat: Whether it contains no list, and no message that does.
        least_excess: Bytes of the smallest message that exceeds any bound.
    """

    fields: dict[int, _Field]
    bounded: Sequence[_Field]
    is_flat: bool
    least_excess: int


@functools.cache
def _schema_of(descriptor: Descriptor) -> _Schema:
    fields = [_field_of(one) for one in descriptor.fields]
    return _Schema(
        fields={one.number: one for one in fields},
        bounded=[one for one in fields if one.least_excess < SMALL_BYTES],
        is_flat=not any(
            one.is_repeated or (one.schema and not one.schema.is_flat) for one in fields
        ),
        least_excess=min((one.least_excess for one in fields), default=SMALL_BYTES),
    )


def _field_of(one: FieldDescriptor) -> _Field:
    is_bytes = one.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    is_number = one.message_type is None and not is_bytes
    if (one.is_repeated or is_bytes) and one.full_name not in FIELD_BOUNDS:
        raise LookupError(f"{one.full_name} has no bound")
    return _Field(
        name=one.name,
        number=one.number,
        is_repeated=one.is_repeated,
        bound=FIELD_BOUNDS.get(one.full_name, FieldBound()),
        width=_WIDTHS.get(one.type, 1) if is_number else 0,
        is_text=one.type == FieldDescriptor.TYPE_STRING,
        is_bytes=is_bytes,
        schema=None if one.message_type is None else _schema_of(one.message_type),
    )


class _Counting:
    """Counts the fields of one message on the wire.

    Counts are kept per message and field number. If a field that is not repeated gives a message
    more than once, its counts continue, since such messages are merged.
    """

    def __init__(self, data: bytes, *, checks_utf8: bool = False) -> None:
        self._data = data
        self._checks_utf8 = checks_utf8
        self._num_surplus = 0

    def count(
        self, start: int, end: int, schema: _Schema, counts: dict[int, Any], prefix: str
    ) -> None:
        """Raises on the first excess among the fields between two positions in the data."""
        fields = schema.fields
        for number, wire_type, begin, finish in read_fields(self._data, start, end):
            one = fields.get(number)
            if one is None:
                self._add_surplus(f"{prefix}{number}")
            elif wire_type != BYTES:
                self._count_number(one, wire_type, counts, prefix)
            elif one.schema is not None:
                self._count_message(one, begin, finish, counts, prefix)
            elif one.is_bytes:
                self._count_bytes(one, begin, finish, counts, prefix)
            else:
                entries = (finish - begin) // one.width
                self._add(one, entries, counts, prefix)

    def _count_number(
        self, one: _Field, wire_type: int, counts: dict[int, Any], prefix: str
    ) -> None:
        expected = {4: FIXED32, 8: FIXED64}.get(one.width, 0) if one.width else BYTES
        if wire_type != expected:
            self._add_surplus(prefix + one.name)
            return
        if one.is_repeated:
            self._add_surplus(prefix + one.name)
        self._add(one, 1, counts, prefix)

    def _count_message(
        self, one: _Field, begin: int, finish: int, counts: dict[int, Any], prefix: str
    ) -> None:
        assert one.schema is not None
        inner: dict[int, Any] = {}
        if one.is_repeated:
            self._add(one, 1, counts, prefix)
            is_tiny = finish - begin <= _TINY_BYTES and one.schema.is_flat
            if is_tiny and not self._checks_utf8:
                return
        elif one.number in counts:
            self._add_surplus(prefix + one.name)
            inner = counts[one.number]
        else:
            counts[one.number] = inner
        self.count(begin, finish, one.schema, inner, f"{prefix}{one.name}.")

    def _count_bytes(
        self, one: _Field, begin: int, finish: int, counts: dict[int, Any], prefix: str
    ) -> None:
        if finish - begin > one.bound.bytes:
            raise _Refused(_too_large(prefix, one, finish - begin))
        if self._checks_utf8 and one.is_text:
            try:
                self._data[begin:finish].decode()
            except UnicodeDecodeError:
                raise _Refused(
                    Malformed(
                        text=f"{prefix}{one.name} is not UTF-8",
                        metadata={"field": prefix + one.name},
                    )
                ) from None
        self._add(one, 1, counts, prefix)

    def _add(self, one: _Field, num_entries: int, counts: dict[int, Any], prefix: str) -> None:
        known = counts.get(one.number)
        count = counts[one.number] = (known or 0) + num_entries
        if not one.is_repeated:
            if known is not None:
                self._add_surplus(prefix + one.name)
        elif count > one.bound.entries:
            raise _Refused(_too_many(prefix, one, f"at least {count}"))
        elif one.width and known is not None:
            self._add_surplus(prefix + one.name)

    def _add_surplus(self, name: str) -> None:
        self._num_surplus += 1
        if self._num_surplus > MAX_SURPLUS_FIELDS:
            raise _Refused(
                Malformed(
                    text=f"at least {self._num_surplus} fields are unknown, given more than once "
                    f"or not packed, the last {name}; the most allowed is {MAX_SURPLUS_FIELDS}",
                    metadata={
                        "field": name,
                        "value": f"at least {self._num_surplus}",
                        "bounds": f"0 to {MAX_SURPLUS_FIELDS}",
                    },
                )
            )


def _find_excess(message: Message, schema: _Schema, prefix: str, size: int) -> Malformed | None:
    """Returns which bound a parsed message of this size on the wire exceeds, if any."""
    for one in schema.bounded:
        found = None
        if size < one.least_excess:
            continue
        if one.is_repeated:
            values = getattr(message, one.name)
            if values:
                found = _find_excess_entries(values, one, prefix)
        elif one.schema is not None:
            if message.HasField(one.name):
                inner = getattr(message, one.name)
                found = _find_excess(inner, one.schema, f"{prefix}{one.name}.", size)
        else:
            value = getattr(message, one.name)
            if len(value) * 4 > one.bound.bytes:
                found = _find_excess_bytes(value, one, prefix)
        if found is not None:
            return found
    return None


def _find_excess_entries(values: Sequence[Any], one: _Field, prefix: str) -> Malformed | None:
    if len(values) > one.bound.entries:
        return _too_many(prefix, one, str(len(values)))
    if one.schema is not None and one.has_lists:
        name = f"{prefix}{one.name}."
        least_excess = one.schema.least_excess
        for value in values:
            own_size = value.ByteSize()
            if own_size < least_excess:
                continue
            if found := _find_excess(value, one.schema, name, own_size):
                return found
    elif one.is_bytes:
        for value in values:
            if found := _find_excess_bytes(value, one, prefix):
                return found
    return None


def _find_excess_bytes(value: str | bytes, one: _Field, prefix: str) -> Malformed | None:
    size = len(value.encode() if isinstance(value, str) else value)
    return _too_large(prefix, one, size) if size > one.bound.bytes else None


def _too_many(prefix: str, one: _Field, count: str) -> Malformed:
    most = one.bound.entries
    return Malformed(
        text=f"{prefix}{one.name} has {count} entries, the most allowed is {most}",
        metadata={"field": prefix + one.name, "value": count, "bounds": f"0 to {most}"},
        reason=one.bound.reason,
    )


def _too_large(prefix: str, one: _Field, size: int) -> Malformed:
    most = one.bound.bytes
    # Of a list, each entry has this bound.
    name = f"an entry of {prefix}{one.name}" if one.is_repeated else f"{prefix}{one.name}"
    return Malformed(
        text=f"{name} has {size} bytes, the most allowed is {most}",
        metadata={"field": prefix + one.name, "value": str(size), "bounds": f"0 to {most}"},
        reason=one.bound.reason,
    )
