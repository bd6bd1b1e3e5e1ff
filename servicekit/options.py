"""The settings of a command: each is a field of a class, an option, a variable and a key of a file.

A command declares subclasses of `Options`. The metadata of their fields (`about`) gives the meaning
and the allowed values. An `OptionReader` reads them; nothing else reads the environment.
"""

import argparse
import dataclasses
import os
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from protos.wire.printable import shown
from servicekit.errors import StartupError
from servicekit.nearest import did_you_mean, nearest
from servicekit.settings_file import Setting, read_settings
from servicekit.values import Flags, Listed, Values, quoted

_Options = TypeVar("_Options", bound="Options")
Field = dataclasses.Field[Any]
_Given = tuple[str, object, str]
"""A name, its text (or a boolean that has none), and who gave it."""
_CONFIG = "config"
"""The option that names a file of settings."""
_DASHES = ("-", "\N{EN DASH}", "\N{EM DASH}")
"""What an option begins with, also where a word processor has changed it."""


def about(
    values: Values, help: str, *, unset: str = "", is_positional: bool = False
) -> dict[str, Any]:
    """Returns the metadata of an option's field.

    Args:
        values: The values that the option accepts.
        help: Its meaning.
        unset: Meaning of a default such as None or ""; shown in place of the default.
        is_positional: Whether the value stands on the command line without a name.
    """
    return {"values": values, "help": help, "unset": unset, "is_positional": is_positional}


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
        sources: By name, who set the value: an option such as "--port", a variable, or a line of a
            file.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]

    def build(self, group: type[_Options]) -> _Options:
        """Returns the options of one class, with defaults for what was not given."""
        names = [option.name for option in dataclasses.fields(group) if option.name in self.values]
        return group(**{name: self.values[name] for name in names})


@dataclass(frozen=True, slots=True)
class Without:
    """The options of a class that a command takes, which are all but some."""

    options: type[Options]
    names: Collection[str]

    def fields(self) -> list[Field]:
        """Returns the fields of the options."""
        return [one for one in dataclasses.fields(self.options) if one.name not in self.names]


Group = type[Options] | Without


def options_of(group: type[_Options], settings: Sequence[Setting], what: str) -> _Options:
    """Returns the options of one class that a part of a file gives.

    Args:
        group: The class.
        settings: What is given.
        what: That part of the file, for errors.

    Raises:
        StartupError: A key is unknown, has a wrong value, or is missing; the message names it.
    """
    known = {option.name: option for option in dataclasses.fields(group)}
    values: dict[str, Any] = {}
    for setting in settings:
        option = known.get(setting.name)
        if option is None:
            keys = [name.replace("_", "-") for name in known]
            advice = did_you_mean(setting.key, keys) or f"; the keys are {', '.join(keys)}"
            raise StartupError(f"{setting.source} is unknown{advice}")
        if setting.is_list and not isinstance(option.metadata["values"], Listed):
            raise StartupError(f"{setting.source} is a list, but takes one value")
        values[setting.name] = _parse(option, ",".join(setting.texts), setting.source)
    for option in known.values():
        if option.default is dataclasses.MISSING and option.name not in values:
            name = option.name.replace("_", "-")
            raise StartupError(f"{what} has no {name}: {option.metadata['help']}")
    return group(**values)


def flag(name: str) -> str:
    """Returns the option of a field, such as "--max-model-len"."""
    return f"--{name.replace('_', '-')}"


class _HelpFormatter(argparse.HelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        # The default also breaks names of options at their hyphens.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class OptionReader:
    """Reads the options of a command: its command line, else its variables, else a file.

    Args:
        program: The command as it is called, for `--help`.
        description: What it does, for `--help`.
        prefix: Prefix of its variables; a variable with it that is not an option is refused.
        groups: Its option classes by title. All field names are distinct.
        refused: What to do instead of an option that a person may expect, by its field name.
    """

    def __init__(
        self,
        *,
        program: str,
        description: str,
        prefix: str,
        groups: Mapping[str, Group],
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self._program = program
        self._description = description
        self._prefix = prefix
        self._groups = groups
        self._refused = refused or {}
        self.fields: Mapping[str, Field] = {
            option.name: option for group in groups.values() for option in _fields(group)
        }

    def read(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        program: str | None = None,
    ) -> GivenOptions:
        """Reads and checks all options; `--help` prints them and exits.

        Args:
            arguments: The command line without the program's name.
            environment: Variables; None means those of the process.
            program: The command as it was called, if not as usual.

        Raises:
            StartupError: An option, variable or key of the file is unknown, has a wrong value, or
                an option without a default is missing; the message names it.
        """
        variables = os.environ if environment is None else environment
        written = self._parse_arguments(arguments, program or self._program)
        path = written.pop(_CONFIG, None) or variables.get(self._variable(_CONFIG))
        by_option = [(name, text, _written(self.fields[name])) for name, text in written.items()]
        by_variable = list(self._of_variables(variables))
        by_key = [self._of_setting(one) for one in read_settings(Path(path))] if path else []
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for name, text, source in [*by_option, *by_variable, *by_key]:
            if name not in values:
                # `--x` and `--no-x` have no text.
                values[name] = (
                    _parse(self.fields[name], text, source) if isinstance(text, str) else text
                )
                sources[name] = source
        self._check_required(values)
        return GivenOptions(values=values, sources=sources)

    def _parse_arguments(self, arguments: Sequence[str], program: str) -> dict[str, Any]:
        try:
            written, rest = self._parser(program).parse_known_args(arguments)
        except argparse.ArgumentError as error:
            name = str(error.argument_name).partition("/")[0]
            raise StartupError(_misuse(name, self.fields)) from None
        if rest:
            raise StartupError(self._unexpected(rest, vars(written)))
        return vars(written)

    def _of_variables(self, variables: Mapping[str, str]) -> Iterator[_Given]:
        for variable, text in sorted(variables.items()):
            name = variable.removeprefix(self._prefix).lower()
            if not variable.startswith(self._prefix) or name == _CONFIG:
                continue
            if name not in self.fields:
                advice = (
                    _hint(text)
                    or self._advice(name, self._variable)
                    or "; correct or unset it; --help lists the options"
                )
                raise StartupError(
                    f"environment variable {variable:.200} matches no option{advice}"
                )
            yield name, text, variable

    def _of_setting(self, setting: Setting) -> _Given:
        option = self.fields.get(setting.name)
        if option is None:
            advice = self._advice(setting.name, lambda name: name.replace("_", "-"))
            raise StartupError(
                f"{setting.source} is no option{advice or '; --help lists the options'}"
            )
        if setting.is_list and not isinstance(option.metadata["values"], Listed):
            raise StartupError(f"{setting.source} is a list, but takes one value")
        text: object = ",".join(setting.texts)
        return setting.name, text, setting.source

    def _advice(self, name: str, write: Callable[[str], str]) -> str:
        """Returns the end of an error about an option that there is not, if there is any advice."""
        if name in self._refused:
            return f": {self._refused[name]}"
        near = nearest(name, [*self.fields, _CONFIG])
        return f"; did you mean {write(near)}?" if near else ""

    def _unexpected(self, rest: Sequence[str], written: Mapping[str, Any]) -> str:
        """Returns what is wrong with what no option of the command line takes."""
        options = [one for one in rest if one.startswith(_DASHES) and len(one) > 1]
        if not options:
            required = [one for one in self.fields.values() if one.default is dataclasses.MISSING]
            missing = [one for one in required if one.name not in written]
            advice = "--help lists the options"
            if missing:
                advice = f"did you mean {_written(missing[0])} {shown(rest[0])}?"
            return f"{quoted(rest[0])} belongs to no option; {advice}"
        option = options[0].partition("=")[0]
        name = option.lstrip("".join(_DASHES)).replace("-", "_")
        advice = self._advice(name, flag) or "; --help lists the options"
        return f"{shown(option)} is no option{advice}"

    def _check_required(self, values: Mapping[str, Any]) -> None:
        for option in self.fields.values():
            if option.default is dataclasses.MISSING and option.name not in values:
                raise StartupError(
                    f"{_written(option)} (or {self._variable(option.name)}) is required: "
                    f"{option.metadata['help']}; --help lists the options"
                )

    def _parser(self, program: str) -> argparse.ArgumentParser:
        before = [_written(option) for option in self.fields.values() if is_positional(option)]
        parser = argparse.ArgumentParser(
            usage=" ".join((program, *before, "[OPTIONS]")),
            description=f"{self._description} A command line option wins over its environment "
            f"variable, and that over the file of --{_CONFIG}.",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            exit_on_error=False,
            formatter_class=_HelpFormatter,
        )
        parser.add_argument(
            flag(_CONFIG),
            metavar="FILE",
            help=f"YAML file of options, one `option: value` per line ({self._variable(_CONFIG)})",
        )
        for title, group in self._groups.items():
            section = parser.add_argument_group(title, _meaning(group))
            for option in _fields(group):
                is_flag = isinstance(option.metadata["values"], Flags)
                kind: dict[str, Any] = (
                    {"action": argparse.BooleanOptionalAction} if is_flag else {"metavar": "VALUE"}
                )
                name = flag(option.name)
                if is_positional(option):
                    name, kind = option.name, {"metavar": _written(option), "nargs": "?"}
                section.add_argument(name, help=self._help(option), **kind)
        return parser

    def _variable(self, name: str) -> str:
        return f"{self._prefix}{name.upper()}"

    def _help(self, option: Field) -> str:
        text = f"{option.metadata['help']} ({_default(option)}; {self._variable(option.name)})"
        return text.replace("%", "%%")


def is_positional(option: Field) -> bool:
    """Whether an option's value stands on the command line without a name."""
    return bool(option.metadata["is_positional"])


def _written(option: Field) -> str:
    return option.name.upper() if is_positional(option) else flag(option.name)


def _fields(group: Group) -> Sequence[Field]:
    return group.fields() if isinstance(group, Without) else dataclasses.fields(group)


def _meaning(group: Group) -> str:
    return ((group.options if isinstance(group, Without) else group).__doc__ or "").strip()


def _misuse(option: str, fields: Mapping[str, Field]) -> str:
    """Returns what is wrong with an option that there is."""
    field = fields.get(option.removeprefix("--").replace("-", "_"))
    if field is not None and isinstance(field.metadata["values"], Flags):
        return f"{option} takes no value; write {option} or --no-{option.removeprefix('--')}"
    meaning = "a YAML file of options" if field is None else field.metadata["help"]
    return f"{option} needs a value: {meaning}"


def _default(option: Field) -> str:
    if option.default is dataclasses.MISSING:
        return "required"
    if isinstance(option.default, bool):
        return f"default: {'on' if option.default else 'off'}"
    return f"default: {option.metadata['unset'] or option.default}"


def _check(option: Field, value: object, source: str) -> None:
    try:
        option.metadata["values"].check(value)
    except ValueError as error:
        raise StartupError(f"{source} {error}") from None


def _parse(option: Field, text: str, source: str) -> object:
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
