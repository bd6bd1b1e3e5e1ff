"""Child processes that never outlive their parent."""

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_PR_SET_PDEATHSIG = 1


def start_without_signals(process: "SpawnProcess") -> None:
    """Starts a process that blocks SIGINT and SIGTERM from its first instruction.

    Its parent handles signals to the whole group, such as Ctrl-C.
    """
    # The child inherits the mask. The tracker unblocks signals when it starts, so start it first.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def exit_with_parent() -> None:
    """Ends this child process once its parent has ended, however busy it is."""
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()


def die_with_parent() -> None:
    """Lets the kernel kill this child process when the thread that started it has ended.

    Unlike `exit_with_parent`, this also ends a child that is stopped.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    exit_with_parent()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child only"
    connection.wait([parent.sentinel])
    os._exit(1)
