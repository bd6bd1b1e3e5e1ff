"""Finds the end of a JSON object in a text that comes in pieces, or where it stops being one."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_DEPTH = 64
_MAX_SCALAR = 128
"""Characters of a number."""
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR_RUN = re.compile(r"[-+.0-9a-zA-Z]*")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class JsonScanner:
    """Checks an object character by character, and keeps only where it is in it.

    Attributes:
        is_done: The object is complete.
        is_broken: What came last cannot continue it.
    """

    def __init__(self) -> None:
        self.is_done = self.is_broken = False
        self._closers: list[str] = []
        """The brackets that close what is open."""
        self._scalar = ""
        self._num_hex_digits = 0
        self._is_key = False
        """Whether the current string is a key."""
        self._step: Callable[[str, int], int] = self._object

    def scan(self, text: str, position: int = 0) -> int:
        """Returns up to which character, from `position` on, a text continues the object."""
        while position < len(text) and not (self.is_done or self.is_broken):
            position = self._step(text, position)
        return position

    def _object(self, text: str, position: int) -> int:
        return self._open(text, position) if text[position] == "{" else self._break(position)

    def _open(self, text: str, position: int) -> int:
        if len(self._closers) == _MAX_DEPTH:
            return self._break(position)
        is_object = text[position] == "{"
        self._closers.append("}" if is_object else "]")
        self._step = self._first_key if is_object else self._first_item
        return position + 1

    def _first_key(self, text: str, position: int) -> int:
        position = _skip(text, position)
        if text[position : position + 1] == "}":
            return self._close(text, position)
        return self._key(text, position)

    def _first_item(self, text: str, position: int) -> int:
        position = _skip(text, position)
        if text[position : position + 1] == "]":
            return self._close(text, position)
        return self._value(text, position)

    def _key(self, text: str, position: int) -> int:
        position = _skip(text, position)
        if position == len(text):
            return position
        self._is_key = True
        self._step = self._string
        return position + 1 if text[position] == '"' else self._break(position)

    def _colon(self, text: str, position: int) -> int:
        position = _skip(text, position)
        if position == len(text):
            return position
        self._step = self._value
        return position + 1 if text[position] == ":" else self._break(position)

    def _value(self, text: str, position: int) -> int:
        position = _skip(text, position)
        if position == len(text):
            return position
        character = text[position]
        if character in "{[":
            return self._open(text, position)
        if character == '"':
            self._is_key = False
            self._step = self._string
            return position + 1
        if character in "-0123456789tfn":
            self._scalar = ""
            self._step = self._in_scalar
            return position
        return self._break(position)

    def _in_scalar(self, text: str, position: int) -> int:
        room = position + _MAX_SCALAR + 1 - len(self._scalar)
        match = _SCALAR_RUN.match(text, position, room)
        assert match is not None
        self._scalar += match[0]
        if len(self._scalar) > _MAX_SCALAR:
            return self._break(match.end() - 1)
        if match.end() == len(text):
            return match.end()
        if not _SCALAR.fullmatch(self._scalar):
            return self._break(match.end())
        self._step = self._behind
        return match.end()

    def _string(self, text: str, position: int) -> int:
        match = _PLAIN.match(text, position)
        assert match is not None
        position = match.end()
        if position == len(text):
            return position
        if text[position] == '"':
            self._step = self._colon if self._is_key else self._behind
        elif text[position] == "\\":
            self._step = self._escape
        else:
            return self._break(position)
        return position + 1

    def _escape(self, text: str, position: int) -> int:
        if text[position] == "u":
            self._num_hex_digits = 4
            self._step = self._hex_digit
        elif text[position] in '"\\/bfnrt':
            self._step = self._string
        else:
            return self._break(position)
        return position + 1

    def _hex_digit(self, text: str, position: int) -> int:
        if text[position] not in _HEX_DIGITS:
            return self._break(position)
        self._num_hex_digits -= 1
        if not self._num_hex_digits:
            self._step = self._string
        return position + 1

    def _behind(self, text: str, position: int) -> int:
        """After a value: what closes the object or list around it, or goes on with it."""
        position = _skip(text, position)
        if position == len(text):
            return position
        if text[position] == ",":
            self._step = self._key if self._closers[-1] == "}" else self._value
            return position + 1
        return self._close(text, position)

    def _close(self, text: str, position: int) -> int:
        if text[position] != self._closers[-1]:
            return self._break(position)
        self._closers.pop()
        self.is_done = not self._closers
        self._step = self._behind
        return position + 1

    def _break(self, position: int) -> int:
        self.is_broken = True
        return position


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()
