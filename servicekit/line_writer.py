"""Writes lines to a file descriptor that may block, without blocking the caller."""

import contextlib
import os
import queue
import select
import threading
import time

_MAX_HELD_BYTES = 1 << 20
_POLL_SECONDS = 0.005
_starting = threading.Lock()


class LineWriter:
    """Writes lines in order in a separate thread; drops and counts lines that do not fit.

    It keeps working in a forked process, without the lines that its parent had not yet written.

    Args:
        descriptor: Where to write; None discards everything. It stays open.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        # A garbage collection under the lock may log something, too.
        self._lock = threading.RLock()
        self._pid = 0

    def write(self, lines: str) -> None:
        """Accepts one or more whole lines, all or none; never waits for the reader."""
        if self._descriptor is None:
            return
        if self._pid != os.getpid():
            self._start()
        content = lines.encode(errors="backslashreplace")
        with self._lock:
            if self._num_taken - self._num_written + len(content) > _MAX_HELD_BYTES:
                self._num_dropped += 1
                return
            self._say_dropped()
            self._put(content)

    def flush(self, seconds: float) -> bool:
        """Waits up to `seconds` until everything is written; returns whether it is."""
        if self._pid != os.getpid():
            return True
        with self._lock:
            self._say_dropped()
        ends = time.monotonic() + seconds
        while self._num_written < self._num_taken:
            if time.monotonic() > ends:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _start(self) -> None:
        with _starting:
            if self._pid == os.getpid():
                return
            self._lock = threading.RLock()
            self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
            # Bytes. The first changes under the lock, the second in the thread that writes.
            self._num_taken = self._num_written = 0
            self._num_dropped = 0
            threading.Thread(target=self._run, name="log", daemon=True).start()
            self._pid = os.getpid()

    def _say_dropped(self) -> None:
        if self._num_dropped:
            number, self._num_dropped = self._num_dropped, 0
            self._put(f"{number} log entries were dropped: they were not read in time\n".encode())

    def _put(self, content: bytes) -> None:
        self._num_taken += len(content)
        self._queue.put(content)

    def _run(self) -> None:
        while True:
            content = self._queue.get()
            # Line by line: a pipe takes up to 4,096 bytes at once, so that lines of other
            # processes come between and never into them.
            for line in content.splitlines(keepends=True):
                # The reader is gone, or the disk is full.
                with contextlib.suppress(OSError):
                    self._write_all(line)
            self._num_written += len(content)

    def _write_all(self, line: bytes) -> None:
        assert self._descriptor is not None, "write takes nothing then"
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                # Something that shares the descriptor has made it non-blocking.
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll()
