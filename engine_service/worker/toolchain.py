"""The C compiler and Python headers that Triton needs to build its kernel launchers."""

import logging
import shutil
import sys
import sysconfig
from pathlib import Path

from triton import knobs
from triton.runtime import driver

from engine_service.errors import StartupError

_COMPILERS = ("gcc", "clang")

logger = logging.getLogger(__name__)


def check_toolchain() -> None:
    """Checks, before the first kernel is launched, that Triton can launch it on this GPU.

    A missing tool is no error if Triton's cache has what it would build, from an earlier start;
    then a warning names the tool.

    Raises:
        StartupError: A tool is missing and needed; says what to install.
    """
    missing = missing_tool()
    if missing is None:
        return
    try:
        # Builds Triton's driver module, or takes it from the cache.
        _ = driver.active.utils
    except Exception as error:
        raise StartupError(
            f"{missing} (Triton cannot build its kernel launchers: {first_line(error)})"
        ) from error
    logger.warning(
        "toolchain missing detail=%s; this start uses what is in Triton's cache", missing
    )


def missing_tool() -> str | None:
    """Searches where Triton does; returns the missing tool and what to install, or None."""
    compiler = knobs.build.cc
    if compiler is not None and shutil.which(compiler) is None:
        return (
            f"CC is {compiler!r}, but there is no such program; set it to a C compiler or unset it"
        )
    if compiler is None and not any(map(shutil.which, _COMPILERS)):
        return (
            "there is no C compiler (gcc or clang) in PATH; install one where the engine runs "
            "(Debian and Ubuntu: apt-get install gcc libc6-dev)"
        )
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder that holds no headers.
    include = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    if not (Path(include) / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"there is no Python.h in {include}; install the headers of this Python where the "
            f"engine runs (Debian and Ubuntu: apt-get install python{version}-dev)"
        )
    return None


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
