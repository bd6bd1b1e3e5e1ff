"""An event loop that handles many gRPC events at once at a far lower cost.

grpc.aio has a thread that waits for events, such as the end of a write. For each event it writes
one byte to a socket, which wakes the loop. The loop then takes all pending events but reads only
one byte, so after a step that wrote to 256 streams it wakes up 255 times for nothing. If both share
a core, the thread also preempts the loop at each event, so that the loop never finds two at once.
"""

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

import uvloop

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_Arguments = TypeVarTuple("_Arguments")


class GrpcEventLoop(uvloop.Loop):
    """Reads all pending wake-up bytes at once, and leaves gRPC the one that it expects.

    Shutdown does not wait for threads: one that asks a silent DNS server can take minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(thread_name_prefix="asyncio")
        self.set_default_executor(self._threads)

    async def shutdown_default_executor(self, seconds: float | None = None) -> None:
        """Starts no further calls in the threads of `to_thread`; running ones continue."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def add_reader(
        self,
        fd: "FileDescriptorLike",
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
    ) -> None:
        """Watches a file. A Unix socket is gRPC's, since the loop's own do not come through here.

        gRPC queues an event before it writes the byte, so reading a byte early loses nothing: the
        callback runs next and finds the event.
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
    """Keeps all other threads from preempting the main thread on a core that they share.

    Call it after the server has started, when gRPC's threads exist; threads that these start later
    inherit the setting. The threads then wait until the main thread is idle or its time slice ends.
    Does nothing where the system does not allow it or has no /proc.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    main = threading.main_thread().native_id
    with suppress(OSError):
        for entry in list(Path("/proc/self/task").iterdir()):
            if int(entry.name) != main:
                # The thread may have ended, or a sandbox may not allow the call.
                with suppress(OSError):
                    os.sched_setscheduler(int(entry.name), os.SCHED_BATCH, os.sched_param(0))


def let_loop_go_first() -> None:
    """Keeps the calling thread from preempting the main one, as `let_loop_run_on` does others."""
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may not allow it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
