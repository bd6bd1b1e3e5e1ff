"""Files that a running service reads again, whatever has taken their place meanwhile."""

import errno
import os
import stat
from pathlib import Path

# Opening a pipe would wait for its writer forever.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def read_plain_file(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a file, of which links may lead to it; never waits for a writer.

    Args:
        path: The file.
        max_bytes: The most that it may have.

    Raises:
        OSError: It cannot be read, is a pipe, a device or a folder, or is too large; `strerror`
            says which.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, must be a file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes")
    return content
