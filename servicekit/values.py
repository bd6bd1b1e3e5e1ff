"""Types of option values: how each is parsed from a text and checked."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from protos.wire.printable import NAME_RULE, is_name
from servicekit.address import MAX_PORT, is_host
from servicekit.nearest import did_you_mean
from servicekit.units import BYTES, COUNTS, SECONDS, Units

_MAX_QUOTED_CHARACTERS = 100


class Values(Protocol):
    """A type of values. Both methods raise ValueError with a text that follows the option's name.

    `parse` may return a text that it cannot parse unchanged; `check` then refuses it.
    """

    def parse(self, text: str) -> object:
        """Returns the value that a text stands for."""

    def check(self, value: object) -> None:
        """Refuses a value of another type or out of bounds."""


def quoted(value: object) -> str:
    """Returns a value as errors quote it: its `repr`, truncated."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no integer of more than some thousand digits.
        text = f"a {type(value).__name__} too long to write"
    if len(text) > _MAX_QUOTED_CHARACTERS:
        return f"{text[:_MAX_QUOTED_CHARACTERS]}…"
    return text


@dataclass(frozen=True, slots=True)
class Integers:
    """Whole numbers, both bounds included; in a text also with a unit, if they have any."""

    minimum: int
    maximum: int
    units: Units | None = None

    def parse(self, text: str) -> object:
        """Returns an integer, or the text."""
        try:
            return int(text)
        except ValueError:
            exact = self.units.parse(text) if self.units else None
            return text if exact is None or exact.denominator != 1 else exact.numerator

    def check(self, value: object) -> None:
        """Refuses what is no integer or out of bounds."""
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not self.minimum <= value <= self.maximum:  # type: ignore[operator]
            raise ValueError(
                f"is {quoted(value)}, must be an integer from {self.minimum} to {self.maximum}"
                f"{self.units.hint(value) if self.units else ''}"
            )


def counts(minimum: int, maximum: int) -> Integers:
    """Returns the numbers of things within bounds, such as 32k."""
    return Integers(minimum, maximum, COUNTS)


def byte_sizes(minimum: int, maximum: int) -> Integers:
    """Returns the numbers of bytes within bounds, such as 8GiB."""
    return Integers(minimum, maximum, BYTES)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Integers and floats, both bounds included; `noun` says what they are.

    In a text also with a unit, if they have any.
    """

    minimum: float
    maximum: float
    noun: str = "number"
    units: Units | None = None

    def parse(self, text: str) -> object:
        """Returns a float, or the text."""
        try:
            return float(text)
        except ValueError:
            exact = self.units.parse(text) if self.units else None
            return text if exact is None else float(exact)

    def check(self, value: object) -> None:
        """Refuses what is no number or out of bounds."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN is within no bounds.
        if not is_number or not self.minimum <= value <= self.maximum:  # type: ignore[operator]
            raise ValueError(
                f"is {quoted(value)}, must be a {self.noun} from {self.minimum:g} "
                f"to {self.maximum:g}{self.units.hint(value) if self.units else ''}"
            )


def seconds(minimum: float, maximum: float) -> Numbers:
    """Returns the numbers of seconds within bounds, such as 500ms."""
    return Numbers(minimum, maximum, noun="number of seconds", units=SECONDS)


@dataclass(frozen=True, slots=True)
class OneOf:
    """A few fixed values, each written as its `str`."""

    choices: tuple[Any, ...]

    def parse(self, text: str) -> object:
        """Returns the choice, or the text."""
        return next((choice for choice in self.choices if str(choice) == text), text)

    def check(self, value: object) -> None:
        """Refuses what is no choice."""
        # 16.0 equals 16 but is not one of the choices.
        if not any(type(value) is type(choice) and value == choice for choice in self.choices):
            texts = [choice for choice in self.choices if isinstance(choice, str)]
            near = did_you_mean(value, texts) if isinstance(value, str) else ""
            raise ValueError(
                f"is {quoted(value)}, must be one of {', '.join(map(str, self.choices))}{near}"
            )


class _AsWritten:
    """Values that are texts."""

    __slots__ = ()

    def parse(self, text: str) -> str:
        """Returns the text."""
        return text


@dataclass(frozen=True, slots=True)
class Texts(_AsWritten):
    """Texts that match a pattern; `expected` describes them."""

    pattern: str
    expected: str

    def check(self, value: object) -> None:
        """Refuses what is no text or does not match."""
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"is {quoted(value)}, must be {self.expected}")


class Hosts(_AsWritten):
    """Names and IP addresses of hosts."""

    __slots__ = ()

    def check(self, value: object) -> None:
        """Refuses what cannot be a host."""
        if not isinstance(value, str) or not is_host(value):
            raise ValueError(
                f"is {quoted(value)}, must be a name or an IP address, without brackets"
            )


class Names(_AsWritten):
    """Names of models, and the empty text."""

    __slots__ = ()

    def check(self, value: object) -> None:
        """Refuses what cannot be a name."""
        if value != "" and (not isinstance(value, str) or not is_name(value)):
            raise ValueError(f"is {quoted(value)}, must be {NAME_RULE}")


class Paths:
    """Paths of files or folders, which need not exist."""

    __slots__ = ()

    def parse(self, text: str) -> object:
        """Returns a path, or the empty text."""
        return Path(text) if text else text

    def check(self, value: object) -> None:
        """Refuses what is no path."""
        if not isinstance(value, Path):
            raise ValueError(f"is {quoted(value)}, must be a path")
        if "\0" in str(value):
            raise ValueError(f"is {quoted(str(value))}, must be a path, which has no character 0")


class Flags:
    """On or off. Its option is `--x` and `--no-x`; its variable is true, false, 1 or 0."""

    __slots__ = ()

    def parse(self, text: str) -> object:
        """Returns a boolean, or the text."""
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)

    def check(self, value: object) -> None:
        """Refuses what is no boolean."""
        if not isinstance(value, bool):
            raise ValueError(f"is {quoted(value)}, must be true or false")


class Listed:
    """Base of values of several items: commas separate them in a text, a file may list them."""

    __slots__ = ()


class NamesOfClients(Listed):
    """Names in certificates."""

    __slots__ = ()

    def parse(self, text: str) -> object:
        """Returns the names."""
        return tuple(name.strip() for name in text.split(","))

    def check(self, value: object) -> None:
        """Refuses what cannot be names."""
        if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"is {quoted(value)}, must be a tuple of names")
        for name in value:
            if not re.fullmatch(r"[\x21-\x2b\x2d-\x7e]{1,256}", name):
                raise ValueError(
                    f"has the name {quoted(name)}, must have names of 1 to 256 printable ASCII "
                    "characters, without spaces, separated by commas"
                )


PORTS = Integers(0, MAX_PORT)
"""0 stands for any port that is free."""
