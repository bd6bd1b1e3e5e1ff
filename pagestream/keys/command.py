"""`pagestream keys create|list|revoke`."""

import dataclasses
import hashlib
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pagestream.keys.options import NOT_GIVEN, READER, KeysOptions
from pagestream.keys.store import alone, load_or_begin, save
from router.access.keys_file import MAX_KEYS, Key, KeysFile, load_keys
from servicekit.errors import StartupError
from servicekit.log import print_error
from servicekit.nearest import did_you_mean
from servicekit.options import GivenOptions

_PREFIX = "pgs_"
"""By which programs that look for secrets in code find a key."""


def main(arguments: Sequence[str]) -> int:
    """Does what the command line asks for; returns the exit code."""
    try:
        given = READER.read(arguments)
        options = given.build(KeysOptions)
        _check(given, options)
        if options.action == "list":
            print(_table(load_keys(options.file)))
            return 0
        with alone(options.file):
            if options.action == "create":
                _create(options, given)
            else:
                _revoke(options)
    except StartupError as error:
        print_error("pagestream keys", error)
        return 2
    return 0


def _check(given: GivenOptions, options: KeysOptions) -> None:
    if bool(options.name) == (options.action == "list"):
        needs = "takes no name" if options.name else "needs the NAME of a key"
        raise StartupError(f"{options.action} {needs}")
    of_key = [one.name for one in dataclasses.fields(Key) if one.name not in NOT_GIVEN]
    for name in of_key:
        if name in given.values and options.action != "create":
            raise StartupError(f"{given.sources[name]} goes with create, not {options.action}")


def _create(options: KeysOptions, given: GivenOptions) -> None:
    file = load_or_begin(options.file)
    if _named(file, options.name) is not None:
        raise StartupError(
            f"{options.file} has a key {options.name}; choose another name, or revoke it first"
        )
    if len(file.keys) >= MAX_KEYS:
        raise StartupError(f"{options.file} has {MAX_KEYS} keys, and takes no more")
    key = _PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode())
    options_of_key = {
        one.name: given.values[one.name]
        for one in dataclasses.fields(Key)
        if one.name in given.values and one.name not in NOT_GIVEN
    }
    entry = Key(name=options.name, sha256=digest.hexdigest(), **options_of_key)
    save(options.file, dataclasses.replace(file, keys={**file.keys, digest.digest(): entry}))
    print(key)
    print("This key is not shown again.", file=sys.stderr)


def _revoke(options: KeysOptions) -> None:
    file = load_keys(options.file)
    digest = _named(file, options.name)
    if digest is None:
        raise StartupError(_unknown(file, options.name, options.file))
    keys = {one: key for one, key in file.keys.items() if one != digest}
    save(options.file, dataclasses.replace(file, keys=keys))


def _named(file: KeysFile, name: str) -> bytes | None:
    return next((digest for digest, key in file.keys.items() if key.name == name), None)


def _unknown(file: KeysFile, name: str, path: Path) -> str:
    names = [key.name for key in file.keys.values()]
    advice = did_you_mean(name, names) or "; pagestream keys list shows all"
    return f"{path} has no key {name}{advice}"


def _table(file: KeysFile) -> str:
    """Returns all that is known of each key, in columns."""
    names = [one.name for one in dataclasses.fields(Key)]
    rows = [[name.replace("_", "-") for name in names]]
    rows += [[_shown(name, getattr(key, name)) for name in names] for key in file.keys.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _shown(name: str, value: object) -> str:
    if name == "sha256":
        return str(value)[:8]
    if isinstance(value, tuple):
        return ",".join(value) or "all"
    return "-" if value in (None, "") else str(value)
