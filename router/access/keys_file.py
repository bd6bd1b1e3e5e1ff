"""The file of API keys: YAML with `cache-secret` and a list `keys`.

It holds no key, only the SHA-256 of each. That is enough because keys are made here and have 256
random bits: nobody can try them out, with or without a hash that is slow, which would have to be
computed for each request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from protos.wire.printable import NAME_RULE, is_name
from servicekit.errors import StartupError
from servicekit.options import Options, about, options_of
from servicekit.plain_file import read_plain_file
from servicekit.settings_file import read_yaml, settings_of, where
from servicekit.values import Integers, Listed, Texts, counts, quoted

if TYPE_CHECKING:
    from yaml.nodes import Node

MAX_KEYS = 1024
"""Each has series of its own."""
_MAX_BYTES = 1_048_576
_MAX_MODELS = 256
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}"
NAMES = Texts(_NAME, "1 to 64 letters, digits and _.@-, of which - _ . @ are not the first")
_DEFAULT_PRIORITY = 0
_MOST = 1 << 40
_ALL = "no limit"
CACHE_SECRET, KEYS = "cache-secret", "keys"
"""The two parts of the file."""


class _Digests:
    """SHA-256 in hexadecimal. What is written is not told: it may be the key itself."""

    def parse(self, text: str) -> object:
        """Returns the text."""
        return text

    def check(self, value: object) -> None:
        """Refuses what is no digest."""
        if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise ValueError("must be 64 hexadecimal digits in small letters")


class _Models(Listed):
    """Names of models."""

    def parse(self, text: str) -> object:
        """Returns the names."""
        return tuple(text.split(","))

    def check(self, value: object) -> None:
        """Refuses what is no list of names."""
        if not isinstance(value, tuple) or not 1 <= len(value) <= _MAX_MODELS:
            raise ValueError(f"must be a list of 1 to {_MAX_MODELS} names of models")
        for name in value:
            if not is_name(name):
                raise ValueError(f"has {quoted(name)}, must have names of {NAME_RULE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Options):
    """What the file says of one key."""

    name: str = field(metadata=about(NAMES, "who uses the key, for logs and metrics"))
    sha256: str = field(metadata=about(_Digests(), "the SHA-256 of the key, in hexadecimal"))
    models: tuple[str, ...] = field(
        default=(), metadata=about(_Models(), "models that it may use", unset="all")
    )
    max_priority: int = field(
        default=_DEFAULT_PRIORITY,
        metadata=about(Integers(-(2**31), 2**31 - 1), "the highest priority of its requests"),
    )
    tenant: str = field(
        default="",
        metadata=about(
            NAMES, "keys of the same tenant share a prefix cache", unset="the name of the key"
        ),
    )
    max_concurrent_requests: int | None = field(
        default=None, metadata=about(counts(1, _MOST), "requests in progress at once", unset=_ALL)
    )
    requests_per_minute: int | None = field(
        default=None, metadata=about(counts(1, _MOST), "requests in a minute", unset=_ALL)
    )
    tokens_per_minute: int | None = field(
        default=None,
        metadata=about(
            counts(1, _MOST), "tokens in a minute, of prompts and answers together", unset=_ALL
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysFile:
    """All that the file says.

    Attributes:
        cache_secret: What keeps others from computing the cache salts of tenants.
        keys: The keys by their SHA-256; no two have the same name.
    """

    cache_secret: bytes
    keys: Mapping[bytes, Key]


def load_keys(path: Path) -> KeysFile:
    """Reads the file.

    Raises:
        StartupError: It cannot be read, or something in it is wrong; the message names the line.
    """
    return parse_keys(read_content(path), path)


def read_content(path: Path) -> bytes:
    """Returns what is in the file.

    Raises:
        StartupError: It cannot be read or is too large.
    """
    try:
        return read_plain_file(path, _MAX_BYTES)
    except OSError as error:
        raise StartupError(f"{_what(path)} cannot be read: {error.strerror}") from None


def parse_keys(content: bytes, path: Path) -> KeysFile:
    """Returns what the content of the file says.

    Raises:
        StartupError: As `load_keys`.
    """
    root = read_yaml(content, _what(path))
    secret, entries = _parts(root, path)
    keys: dict[bytes, Key] = {}
    names: set[str] = set()
    if len(entries) > MAX_KEYS:
        raise StartupError(f"{_what(path)} has {len(entries)} keys, over {MAX_KEYS}")
    for entry in entries:
        at = where(path, entry)
        key = options_of(Key, settings_of(entry, path), f"the key at {at}")
        digest = bytes.fromhex(key.sha256)
        if key.name in names or digest in keys:
            what = f"name {key.name}" if key.name in names else "sha256"
            raise StartupError(f"{at} has the {what} of a key before; each is given once")
        names.add(key.name)
        keys[digest] = key
    return KeysFile(cache_secret=secret, keys=keys)


def _parts(root: "Node | None", path: Path) -> tuple[bytes, list["Node"]]:
    """Returns the secret and the nodes of the keys."""
    from yaml.nodes import MappingNode, ScalarNode, SequenceNode

    if not isinstance(root, MappingNode):
        raise StartupError(f"{_what(path)} must have {CACHE_SECRET} and a list {KEYS}")
    found: dict[str, Node] = {}
    for key, value in root.value:
        name = key.value if isinstance(key, ScalarNode) else "a list or a mapping"
        if name not in (CACHE_SECRET, KEYS) or name in found:
            problem = "is given twice" if name in found else f"is neither {CACHE_SECRET} nor {KEYS}"
            raise StartupError(f"{where(path, key)} {quoted(name)[1:-1]} {problem}")
        found[name] = value
    secret, keys = found.get(CACHE_SECRET), found.get(KEYS)
    try:
        _Digests().check(secret.value if isinstance(secret, ScalarNode) else None)
    except ValueError as error:
        raise StartupError(f"{CACHE_SECRET} of {_what(path)} {error}") from None
    if not isinstance(keys, SequenceNode):
        raise StartupError(f"{KEYS} of {_what(path)} must be a list; [] has no keys")
    assert isinstance(secret, ScalarNode), "checked above"
    return bytes.fromhex(secret.value), keys.value


def _what(path: Path) -> str:
    return f"the file of API keys {path}"
