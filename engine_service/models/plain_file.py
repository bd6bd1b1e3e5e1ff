"""Files of a model folder, which may be untrusted: opened only if that is safe."""

import os
import stat
from pathlib import Path

from engine_service.errors import StartupError

# Opening a pipe would wait for its writer forever.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def exists(path: Path) -> bool:
    """Returns whether anything has that name, including a broken link.

    Raises:
        StartupError: The folder cannot be searched.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise cannot_read(path, error) from error
    return True


def open_plain_file(path: Path) -> int:
    """Opens a file, following any link, and returns its descriptor; the caller owns it.

    Raises:
        StartupError: It cannot be read, or is a folder, a pipe or a device.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise cannot_read(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StartupError(f"{path}: is not a regular file")
    return descriptor


def read_own_file(path: Path, max_bytes: int) -> bytes:
    """Reads a file that belongs to its folder; its content may be shown to others.

    A link may lead to another place in the folder, as in Kubernetes volumes, and from a snapshot
    in the hub's cache to the blobs beside it.

    Args:
        path: The file.
        max_bytes: Its maximum size.

    Raises:
        StartupError: It cannot be read, is too large or not a plain file, or a link leads out.
    """
    try:
        folder, target = path.parent.resolve(), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # The latter for links in a circle, up to Python 3.12.
        raise cannot_read(path, error) from error
    if not any(target.is_relative_to(home) for home in _homes(folder)):
        raise StartupError(
            f"{path}: is a link that leads outside the model's folder, to {target}; "
            "replace the link with the file"
        )
    with open(open_plain_file(target), "rb") as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise cannot_read(path, error) from error
    if len(content) > max_bytes:
        raise StartupError(f"{path}: has more than {max_bytes} bytes, the limit for this file")
    return content


def cannot_read(path: Path, error: Exception) -> StartupError:
    """Returns the error for a file that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StartupError(f"{path}: cannot be read: {reason}")


def _homes(folder: Path) -> list[Path]:
    """Returns the folders in which the files of a model folder may be."""
    # <cache>/models--<owner>--<name>/snapshots/<commit>/<file> -> ../../blobs/<hash>
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return [folder, repository / "blobs"]
    return [folder]
