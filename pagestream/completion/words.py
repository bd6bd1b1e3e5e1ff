"""What can be completed: the commands, and of each its options and their values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from pagestream.commands import Command
from servicekit.options import Field, flag, is_positional
from servicekit.values import Flags, OneOf, Paths

_MAX_MEANING_CHARACTERS = 80


class Value(Enum):
    """What stands behind an option."""

    NONE = "nothing"
    TEXT = "a text that no shell can know"
    PATH = "a file"
    CHOICE = "one of a few words"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command.

    Attributes:
        name: As it is written, such as "--port".
        meaning: What it is for, in short.
        value: What stands behind it.
        choices: The words that may, if they are few.
    """

    name: str
    meaning: str
    value: Value
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """What can stand behind the name of one command.

    Attributes:
        summary: What the command does.
        options: Its options.
        choices: The words that may stand alone.
    """

    summary: str
    options: tuple[Option, ...]
    choices: tuple[str, ...]


def words_of(commands: Mapping[str, Command]) -> dict[str, Words]:
    """Returns what can be completed, by command."""
    return {name: _words(command) for name, command in commands.items()}


def _words(command: Command) -> Words:
    options = [Option("--help", "list the options", Value.NONE)]
    choices: tuple[str, ...] = ()
    reader = command.reader()
    if reader is not None:
        options.append(Option("--config", "YAML file of options", Value.PATH))
        for field in reader.fields.values():
            if is_positional(field):
                choices += _choices(field)
            else:
                options += _options(field)
    return Words(command.summary, tuple(options), choices)


def _options(field: Field) -> list[Option]:
    values, name = field.metadata["values"], flag(field.name)
    meaning = _short(field.metadata["help"])
    if isinstance(values, Flags):
        no = flag(f"no_{field.name}")
        return [Option(name, meaning, Value.NONE), Option(no, f"not: {meaning}", Value.NONE)]
    if choices := _choices(field):
        return [Option(name, meaning, Value.CHOICE, choices)]
    return [Option(name, meaning, Value.PATH if isinstance(values, Paths) else Value.TEXT)]


def _choices(field: Field) -> tuple[str, ...]:
    values = field.metadata["values"]
    return tuple(map(str, values.choices)) if isinstance(values, OneOf) else ()


def _short(text: str) -> str:
    text = text.partition(";")[0]
    is_long = len(text) > _MAX_MEANING_CHARACTERS
    return f"{text[:_MAX_MEANING_CHARACTERS]}…" if is_long else text
