"""JSON files of a model folder, which may be untrusted: bounded in size, strict JSON."""

import json
from collections import Counter
from pathlib import Path
from typing import NoReturn

from engine_service.errors import StartupError
from engine_service.models.plain_file import read_own_file

_MAX_CONFIG_BYTES = 4 << 20
_MAX_DEPTH = 64
_MAX_SHOWN_CHARACTERS = 100


def read_json(path: Path, max_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, object]:
    """Reads a JSON object.

    Args:
        path: The file, which must belong to its folder.
        max_bytes: Its maximum size.

    Raises:
        StartupError: The file cannot be read or does not hold an object.
    """
    content = read_own_file(path, max_bytes)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise StartupError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path}: is not a JSON object")
    return value


def parse_json(content: bytes) -> object:
    """Parses UTF-8 JSON, without the NaN and Infinity that Python adds to it.

    Raises:
        ValueError: It is not JSON, repeats a field of an object, or is nested too deeply.
    """
    too_deep = ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    try:
        value = json.loads(
            content.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_twins
        )
    except RecursionError:
        raise too_deep from None
    if _depth_is_over(value, _MAX_DEPTH):
        raise too_deep
    return value


def shown(value: object) -> str:
    """Returns a value as JSON for a message, truncated to fit one line."""
    text = json.dumps(value, default=str)
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:_MAX_SHOWN_CHARACTERS]}..."


def _depth_is_over(value: object, bound: int) -> bool:
    level = [value]
    for _ in range(bound + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
        ]
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twin, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(twin)} appears twice in one object")
    return fields
