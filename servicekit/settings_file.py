"""A file of settings: YAML, one `option: value` per line.

Values are taken as they are written and mean what they would mean on the command line. The file is
never more than a flat list of texts, so none of YAML's types, tags or references matter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servicekit.errors import StartupError
from servicekit.values import quoted

if TYPE_CHECKING:
    from yaml.nodes import Node

_MAX_BYTES = 65_536
_TAG = "tag:yaml.org,2002:"
_NULL = f"{_TAG}null"
_PLAIN = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "timestamp")}
"""What YAML takes a text for by itself."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a file.

    Attributes:
        key: The option as it is written, without its dashes.
        texts: Its value; several are those of a list.
        is_list: Whether the value is a list.
        source: File, line and key, for errors.
    """

    key: str
    texts: tuple[str, ...]
    is_list: bool
    source: str

    @property
    def name(self) -> str:
        """The name of the option's field."""
        return self.key.replace("-", "_")


def read_settings(path: Path) -> list[Setting]:
    """Returns the settings of a file, in their order.

    Raises:
        StartupError: The file cannot be read, is too large, or is no list of settings; the message
            names the file and the line.
    """
    what = f"the settings file {path}"
    root = read_yaml(read_bounded(path, _MAX_BYTES, what), what)
    return [] if root is None else settings_of(root, path)


def read_bounded(path: Path, max_bytes: int, what: str) -> bytes:
    """Returns the content of a file.

    Args:
        path: The file.
        max_bytes: The most that it may have.
        what: The file, for errors.

    Raises:
        StartupError: It cannot be read or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartupError(f"{what} cannot be read: {reason}") from None
    if len(content) > max_bytes:
        raise StartupError(f"{what} has more than {max_bytes} bytes")
    return content


def read_yaml(content: bytes, what: str) -> "Node | None":
    """Returns what a file consists of, or None if it is empty.

    Args:
        content: All of the file.
        what: The file, for errors.

    Raises:
        StartupError: It is no YAML.
    """
    # Not above: few commands are given a file.
    import yaml

    try:
        root: Node | None = yaml.compose(content, Loader=yaml.SafeLoader)
    # The last two are escapes and versions whose numbers are beyond what Python takes.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise StartupError(f"{what} is no YAML: {_problem(error)}") from None
    except RecursionError:
        raise StartupError(f"{what} is nested too deeply") from None
    return None if root is None or root.tag == _NULL else root


def settings_of(root: "Node", path: Path) -> list[Setting]:
    """Returns the settings that a part of a file consists of, in their order.

    Raises:
        StartupError: It is no list of settings; the message names the file and the line.
    """
    from yaml.nodes import MappingNode

    if not isinstance(root, MappingNode):
        raise StartupError(f"{where(path, root)} is no setting; write option: value on each line")
    settings: dict[str, Setting] = {}
    for key, value in root.value:
        setting = _setting(path, key, value)
        if setting.name in settings:
            raise StartupError(f"{setting.source} is given twice; remove one of them")
        settings[setting.name] = setting
    return list(settings.values())


def _setting(path: Path, key: "Node", value: "Node") -> Setting:
    from yaml.nodes import ScalarNode, SequenceNode

    if not isinstance(key, ScalarNode):
        raise StartupError(f"{where(path, key)} has a key that is no name of an option")
    source = f"{where(path, key)} {quoted(key.value)[1:-1]}"
    is_list = isinstance(value, SequenceNode)
    items = value.value if is_list else [value]
    for item in items:
        if not isinstance(item, ScalarNode):
            raise StartupError(f"{source} is nested; write its value on the same line")
        if item.tag == _NULL:
            raise StartupError(f"{source} has no value; give it one or remove the line")
        if item.tag not in _PLAIN:
            raise StartupError(f"{source} has the tag {quoted(item.tag)}; remove it")
    texts = tuple(item.value for item in items)
    return Setting(key=key.value, texts=texts, is_list=is_list, source=source)


def where(path: Path, node: "Node") -> str:
    """Returns the line of a part of a file, for errors."""
    return f"{path}:{node.start_mark.line + 1}"


def _problem(error: Exception) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is malformed"
    mark = getattr(error, "problem_mark", None)
    return f"{problem} in line {mark.line + 1}" if mark is not None else str(problem)
