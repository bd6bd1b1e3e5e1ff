"""A service's own process: how many files it may open, and its end at once."""

import contextlib
import os
import resource
import signal
import threading

from servicekit.log import flush_log

_MAX_FILES = 1 << 20
"""Enough for anybody. Some systems allow a thousand times as many, and libraries loop over them."""
_FLUSH_SECONDS = 0.5


def raise_file_limit() -> None:
    """Allows as many open files, which connections are, as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A sandbox may not allow it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exit_code_of(number: int) -> int:
    """Returns the exit code of a process that a signal ended, as a shell shows it."""
    return 128 + signal.Signals(number)


def exit_at_once(code: int) -> None:
    """Ends the process without waiting for anything but, for a moment, its log."""
    flush_log(_FLUSH_SECONDS)
    os._exit(code)


def exit_within(seconds: float, code: int) -> None:
    """Ends the process after so many seconds, unless it has ended by itself by then."""
    # Whatever an orderly end waits for, the event loop included.
    last = threading.Timer(seconds, exit_at_once, (code,))
    last.daemon = True
    last.start()
