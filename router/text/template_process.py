"""A worker process of a chat template, and the protocol with it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from router.text import template_worker

END_CAUSES = ("time", "died", "protocol")
"""Why a worker ended unexpectedly: its time limit, its own exit, or an invalid answer."""

_MAX_ERROR_BYTES = 4 * template_worker.MAX_ERROR_CHARACTERS
_CHUNK_BYTES = 64 << 10
_REAP_SECONDS = 1.0
"""How long to wait for a killed worker. One that another process traces may never end."""
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.0005, 0.01


class TemplateRefused(Exception):
    """The template rejects the conversation; the text is the template's own message."""


class TemplateEnded(Exception):
    """The worker ended before it answered, or had to be ended.

    Attributes:
        cause: One of `END_CAUSES`.
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


class TemplateProcess:
    """A running worker. One thread at a time may use it; any thread may kill it.

    Its answers are bounded before they are read, and never trusted: a template may have escaped its
    sandbox. `ask` ends the worker on any exception except `TemplateRefused`.
    """

    def __init__(self, max_bytes: int) -> None:
        """Starts the worker, in about a millisecond; it is ready some 0.1 s later.

        Args:
            max_bytes: UTF-8 bytes of the longest text that it may return.

        Raises:
            OSError: The system cannot start another process.
        """
        self._max_bytes = {template_worker.LAID_OUT: max_bytes}
        self._max_bytes[template_worker.REFUSED] = _MAX_ERROR_BYTES
        self._reaping = threading.Lock()
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                # A session of its own: Ctrl-C does not reach it, and everything that a template
                # starts can be killed with it. It inherits neither the router's log nor its ports.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", template_worker.__file__],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        """The process's ID."""
        return self._process.pid

    def check(self) -> None:
        """Checks that the worker is running and idle.

        Raises:
            TemplateEnded: It has ended, or has sent something unasked.
        """
        try:
            self._socket.settimeout(0)
            unasked = self._socket.recv(1)
        except BlockingIOError:
            return
        except OSError:
            unasked = b""
        if unasked:
            raise self._ended("protocol", "it sent an answer without a request")
        raise self._ended("died")

    def ask(self, request: tuple[bytes, bytes], seconds: float) -> str:
        """Sends a request and returns the answer.

        Args:
            request: Head and body, as in `template_worker`.
            seconds: Wall time after which the worker is killed.

        Raises:
            TemplateRefused: The worker reports it.
            TemplateEnded: It ended, or its answer is invalid.
        """
        try:
            return self._ask(request, time.monotonic() + seconds)
        except (TemplateRefused, TemplateEnded):
            raise
        except BaseException:
            # Its late answer would be taken for the answer to the next request.
            self.end()
            raise

    def kill(self) -> None:
        """Kills the worker and all that it started; a pending `ask` raises TemplateEnded."""
        # The system does not reuse its process ID before it is reaped.
        with self._reaping:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, seconds: float = _REAP_SECONDS) -> None:
        """Kills the worker, waits up to `seconds` for its end (usually milliseconds), closes."""
        self.kill()
        deadline = time.monotonic() + seconds
        pause = _MIN_POLL_SECONDS
        while not self._is_gone() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _MAX_POLL_SECONDS)
        self._socket.close()

    def _is_gone(self) -> bool:
        with self._reaping:
            return self._process.poll() is not None

    def _ask(self, request: tuple[bytes, bytes], deadline: float) -> str:
        head, body = request
        sizes = template_worker.REQUEST.pack(len(head), len(body))
        try:
            self._socket.settimeout(_seconds_until(deadline))
            self._socket.sendall(b"".join((sizes, head, body)))
            kind, answer = self._receive(deadline)
        except TimeoutError:
            raise self._ended("time", "it exceeded its time limit") from None
        except OSError:
            raise self._ended("died") from None
        try:
            text = answer.decode()
        except UnicodeDecodeError:
            raise self._ended("protocol", "its answer is not UTF-8") from None
        if kind == template_worker.REFUSED:
            # A template's message may have several lines.
            raise TemplateRefused(" ".join(text.split()))
        return text

    def _receive(self, deadline: float) -> tuple[bytes, bytes]:
        header = template_worker.ANSWER
        received = bytearray()
        while True:
            received += self._read(deadline)
            if len(received) < header.size:
                continue
            kind, size = header.unpack_from(received)
            max_bytes = self._max_bytes.get(kind)
            if max_bytes is None:
                raise self._ended("protocol", f"its answer has the unknown kind {kind!r}")
            if size > max_bytes or len(received) > header.size + size:
                raise self._ended(
                    "protocol", f"its answer has {size} bytes or more, over the limit {max_bytes}"
                )
            if len(received) == header.size + size:
                with memoryview(received) as view:
                    return kind, bytes(view[header.size :])

    def _read(self, deadline: float) -> bytes:
        self._socket.settimeout(_seconds_until(deadline))
        data = self._socket.recv(_CHUNK_BYTES)
        if not data:
            # The exit code says more.
            raise self._ended("died")
        return data

    def _ended(self, cause: str, text: str = "") -> TemplateEnded:
        """Ends the worker and returns the exception for it."""
        self.end()
        code = self._process.returncode
        if cause != "died":
            return TemplateEnded(cause, text)
        if code == -signal.SIGPROF:
            return TemplateEnded("time", "it exceeded its time limit")
        return TemplateEnded("died", _meaning_of(code))


def _seconds_until(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _meaning_of(code: int | None) -> str:
    if code is None:
        return "it was killed but does not end"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        # Signals from 35 on have no names.
        return f"signal {-code}"
