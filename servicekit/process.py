"""A service's own process: its open file limit and its immediate exit."""

import contextlib
import os
import resource
import signal
import threading

from servicekit.log import flush_log

_MAX_FILES = 1 << 20
"""Always enough. Some systems allow a thousand times as many, and libraries loop over them."""
_FLUSH_SECONDS = 0.5


def raise_file_limit() -> None:
    """Raises the limit of open files, which include connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A sandbox may not allow it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_port_connections() -> int:
    """Returns how many connections a port for clients may hold, by the limit of open files.

    It is a third of them. A router has two such ports, so a third is left for connections to
    engines and to the operations port, which probes must always reach.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (_MAX_FILES if soft == resource.RLIM_INFINITY else soft) // 3


def exit_code_of(number: int) -> int:
    """Returns a shell's exit code for a process that a signal ended."""
    return 128 + signal.Signals(number)


def exit_at_once(code: int) -> None:
    """Ends the process at once; it only waits briefly for its log."""
    flush_log(_FLUSH_SECONDS)
    os._exit(code)


def exit_within(seconds: float, code: int) -> None:
    """Ends the process after this many seconds, unless it has already ended."""
    # Independent of what an orderly exit waits for, including the event loop.
    last = threading.Timer(seconds, exit_at_once, (code,))
    last.daemon = True
    last.start()
