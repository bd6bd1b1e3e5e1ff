"""The settings of a service: each is a field of a class, a command line option and a variable.

A service declares subclasses of `Options`. The metadata of their fields (`about`) gives the meaning
and the allowed values. An `OptionReader` reads them; nothing else reads the environment.
"""

import argparse
import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from servicekit.errors import StartupError
from servicekit.values import Flags, Values

_Options = TypeVar("_Options", bound="Options")
_Field = dataclasses.Field[Any]


def about(values: Values, help: str, *, unset: str = "") -> dict[str, Any]:
    """Returns the metadata of an option's field.

    Args:
        values: The values that the option accepts.
        help: Its meaning.
        unset: Meaning of a default such as None or ""; shown in place of the default.
    """
    return {"values": values, "help": help, "unset": unset}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Base of a class whose fields are options. The constructor checks their values.

    Raises:
        StartupError: A value has the wrong type or is out of bounds; the message names its field.
    """

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            # A default such as None need not be an allowed value.
            if value is not option.default:
                _check(option, value, option.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenOptions:
    """The options that were given, all of them valid.

    Attributes:
        values: Values by name.
        sources: By name, the option or variable that set the value, such as "--port".
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]

    def build(self, group: type[_Options]) -> _Options:
        """Returns the options of one class, with defaults for what was not given."""
        names = [option.name for option in dataclasses.fields(group) if option.name in self.values]
        return group(**{name: self.values[name] for name in names})


class _HelpFormatter(argparse.HelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        # The default also breaks names of options at their hyphens.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(f"{message:.500}; --help lists the options")


class OptionReader:
    """Reads the options of a service from its command line, else from environment variables.

    Args:
        program: The command that starts the service, for `--help`.
        description: What it does, for `--help`.
        prefix: Prefix of its variables; a variable with it that is not an option is refused.
        groups: Its option classes by title. All field names are distinct.
    """

    def __init__(
        self,
        *,
        program: str,
        description: str,
        prefix: str,
        groups: Mapping[str, type[Options]],
    ) -> None:
        self._program = program
        self._description = description
        self._prefix = prefix
        self._groups = groups
        self._fields: dict[str, _Field] = {
            option.name: option for group in groups.values() for option in dataclasses.fields(group)
        }

    def read(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> GivenOptions:
        """Reads and checks all options; `--help` prints them and exits.

        Args:
            arguments: The command line without the program's name.
            environment: Variables; None means those of the process.

        Raises:
            StartupError: An option or variable is unknown, has a wrong value, or an option without
                a default is missing; the message names it.
        """
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for name, given in vars(self._parser().parse_args(arguments)).items():
            sources[name] = _flag(name)
            # `--x` and `--no-x` have no text.
            is_text = isinstance(given, str)
            values[name] = _parse(self._fields[name], given, sources[name]) if is_text else given
        variables = os.environ if environment is None else environment
        for variable, text in sorted(variables.items()):
            if not variable.startswith(self._prefix):
                continue
            name = variable.removeprefix(self._prefix).lower()
            if name not in self._fields:
                advice = _hint(text) or "; correct or unset it; --help lists the options"
                raise StartupError(
                    f"environment variable {variable:.200} matches no option{advice}"
                )
            if name not in values:
                values[name] = _parse(self._fields[name], text, variable)
                sources[name] = variable
        for option in self._fields.values():
            if option.default is dataclasses.MISSING and option.name not in values:
                raise StartupError(
                    f"{_flag(option.name)} (or {self._variable(option)}) is required: "
                    f"{option.metadata['help']}; --help lists the options"
                )
        return GivenOptions(values=values, sources=sources)

    def _parser(self) -> _Parser:
        parser = _Parser(
            prog=self._program,
            description=f"{self._description} A command line option wins over its environment "
            "variable.",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=_HelpFormatter,
        )
        for title, group in self._groups.items():
            section = parser.add_argument_group(title, (group.__doc__ or "").strip())
            for option in dataclasses.fields(group):
                is_flag = isinstance(option.metadata["values"], Flags)
                kind: dict[str, Any] = (
                    {"action": argparse.BooleanOptionalAction} if is_flag else {"metavar": "VALUE"}
                )
                section.add_argument(_flag(option.name), help=self._help(option), **kind)
        return parser

    def _variable(self, option: _Field) -> str:
        return f"{self._prefix}{option.name.upper()}"

    def _help(self, option: _Field) -> str:
        text = f"{option.metadata['help']} ({_default(option)}; {self._variable(option)})"
        return text.replace("%", "%%")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(option: _Field) -> str:
    if option.default is dataclasses.MISSING:
        return "required"
    if isinstance(option.default, bool):
        return f"default: {'on' if option.default else 'off'}"
    return f"default: {option.metadata['unset'] or option.default}"


def _check(option: _Field, value: object, source: str) -> None:
    try:
        option.metadata["values"].check(value)
    except ValueError as error:
        raise StartupError(f"{source} {error}") from None


def _parse(option: _Field, text: str, source: str) -> object:
    values: Values = option.metadata["values"]
    try:
        value = values.parse(text)
        values.check(value)
    except ValueError as error:
        raise StartupError(f"{source} {error}{_hint(text)}") from None
    return value


def _hint(text: str) -> str:
    # For a Service named after ours, Kubernetes sets variables with our prefix.
    if text.startswith("tcp://"):
        return (
            "; Kubernetes sets this variable for a Service of this name: "
            "set enableServiceLinks to false in the pod spec"
        )
    return ""
