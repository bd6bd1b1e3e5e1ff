"""Changes the file of API keys."""

import contextlib
import dataclasses
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from router.access.keys_file import CACHE_SECRET, KEYS, Key, KeysFile, load_keys
from servicekit.errors import StartupError

_MODE = 0o600


def load_or_begin(path: Path) -> KeysFile:
    """Returns what the file says, or an empty one with a secret of its own if there is none.

    Raises:
        StartupError: The file cannot be read, or is wrong.
    """
    # Unlike the path's own method, it takes a folder that may not be searched for none.
    if not os.path.exists(path):
        return KeysFile(cache_secret=secrets.token_bytes(32), keys={})
    return load_keys(path)


def save(path: Path, file: KeysFile) -> None:
    """Replaces the file at once, so that no router reads half of it.

    A new file can be read by its owner only; one that was there keeps its owner and its mode.

    Raises:
        StartupError: It cannot be written.
    """
    import yaml

    path = _real(path)
    entries = [_entry(key) for key in file.keys.values()]
    content = {CACHE_SECRET: file.cache_secret.hex(), KEYS: entries}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
            # A router that may not read what root has changed goes on with a key that was revoked.
            if path.exists():
                old = path.stat()
                os.chown(out.fileno(), old.st_uid, old.st_gid)
                os.fchmod(out.fileno(), stat.S_IMODE(old.st_mode))
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise StartupError(
            f"the file of API keys {path} cannot be written: {error.strerror}"
        ) from None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other commands from changing the file meanwhile.

    Raises:
        StartupError: Its folder cannot be opened.
    """
    try:
        folder = os.open(_real(path).parent, os.O_RDONLY)
    except OSError as error:
        raise StartupError(f"the folder of {path} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _real(path: Path) -> Path:
    # The path's own method raises an error of its own for links in a circle.
    return Path(os.path.realpath(path))


def _entry(key: Key) -> dict[str, object]:
    """Returns a key as the file has it."""
    values = {
        option.name.replace("_", "-"): getattr(key, option.name)
        for option in dataclasses.fields(key)
        if getattr(key, option.name) != option.default
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
