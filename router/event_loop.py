"""An asyncio loop on which an event of gRPC costs far less when many come at once.

grpc.aio has a thread of its own that waits for events, such as the end of a write. For each one it
writes a byte to a socket that wakes the loop. Woken, the loop takes all events there are, but reads
one byte: after a step that wrote to 256 streams it turns 255 times for nothing. And on a core that
the two share, the thread interrupts the loop for each event, so that it never finds two.
"""

import asyncio
import fcntl
import os
import socket
import termios
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVarTuple

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_Arguments = TypeVarTuple("_Arguments")


class GrpcEventLoop(asyncio.SelectorEventLoop):
    """Reads all bytes that wake it at once, and leaves gRPC the one that it expects.

    Its end waits for no thread: one that asks a silent DNS server takes minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(thread_name_prefix="asyncio")
        self.set_default_executor(self._threads)

    async def shutdown_default_executor(self, seconds: float | None = None) -> None:
        """Begins nothing more in the threads of `to_thread`, and leaves them to their work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def add_reader(
        self,
        fd: "FileDescriptorLike",
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
    ) -> None:
        """Calls back when a file can be read; a socket is gRPC's, for asyncio's own come not here.

        A byte is written after its event was queued, so one that is read early loses nothing: the
        callback, which comes next, finds the event.
        """
        if not (isinstance(fd, socket.socket) and fd.family == socket.AF_UNIX):
            super().add_reader(fd, callback, *args)
            return
        waking, num_bytes = fd, array("i", [0])

        def read_ahead() -> None:
            fcntl.ioctl(waking, termios.FIONREAD, num_bytes)
            if num_bytes[0] > 1:
                waking.recv(num_bytes[0] - 1)
            callback(*args)

        super().add_reader(fd, read_ahead)


def let_loop_run_on() -> None:
    """Keeps all other threads from interrupting the main one on a core that they share.

    To be called when the server has started, so that gRPC's threads are there; those that they
    start later do as they do. They wait until the main thread has nothing to do, or its time slice
    ends. A system that does not allow it, or has no /proc, is left as it is.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    main = threading.main_thread().native_id
    with suppress(OSError):
        for entry in list(Path("/proc/self/task").iterdir()):
            if int(entry.name) != main:
                # It may have ended since, and a sandbox may not allow it.
                with suppress(OSError):
                    os.sched_setscheduler(int(entry.name), os.SCHED_BATCH, os.sched_param(0))


def let_loop_go_first() -> None:
    """Keeps the calling thread from interrupting the main one, as `let_loop_run_on` does others."""
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may not allow it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
