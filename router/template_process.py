"""A worker process of a chat template, and the one exchange with it that is under way."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from router import template_worker

END_CAUSES = ("time", "died", "protocol")
"""Why a worker ends that nobody ended: its limits, by itself, or for what it answered."""

_MAX_ERROR_BYTES = 4 * template_worker.MAX_ERROR_CHARACTERS
_CHUNK_BYTES = 64 << 10
_REAP_SECONDS = 0.005


class TemplateRefused(Exception):
    """The template lays out no such conversation; the text is its own."""


class TemplateEnded(Exception):
    """The worker ended before it answered, or had to be.

    Attributes:
        cause: One of `END_CAUSES`.
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def _ignore() -> None:
    """Does nothing."""


class TemplateProcess:
    """A worker that runs. To be used in the thread of the event loop in which it was made.

    What it answers is bounded before it is read, and believed in nothing: a template may have
    escaped its sandbox.
    """

    def __init__(self, max_bytes: int, on_end: Callable[[TemplateEnded], None]) -> None:
        """Starts the worker, in a millisecond or so; it is ready some 0.1 s later.

        Args:
            max_bytes: UTF-8 of the longest text that it may answer.
            on_end: Is called once, if it ends and `end` was not called.

        Raises:
            OSError: The system has no room for a process.
        """
        self._max_bytes = {template_worker.LAID_OUT: max_bytes}
        self._max_bytes[template_worker.REFUSED] = _MAX_ERROR_BYTES
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[str] | None = None
        self._on_done: Callable[[], None] = _ignore
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._end: TemplateEnded | None = None
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                # Of its own session, so that it hears of no Ctrl-C, and that all that a template
                # may have started can be killed. Nothing holds on to the router's log or ports.
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
        self._socket.setblocking(False)
        # By its number: GrpcEventLoop takes a socket for one of gRPC's.
        self._loop.add_reader(self._socket.fileno(), self._receive)

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more requests."""
        return self._end is not None

    @property
    def pid(self) -> int:
        """The process's ID."""
        return self._process.pid

    def ask(
        self,
        request: tuple[bytes, bytes],
        seconds: float,
        on_done: Callable[[], None] = _ignore,
    ) -> "asyncio.Future[str]":
        """Sends a request; none may be under way.

        Args:
            request: Head and body, as in `template_worker`.
            seconds: Wall time after which the worker is killed.
            on_done: Is called when it has answered or ended, whether or not somebody still waits.

        Returns:
            What it answers, or else `TemplateRefused` or `TemplateEnded`. May be cancelled, which
            the worker does not hear of.
        """
        assert self._answer is None, "one exchange at a time"
        assert self._end is None, "an ended worker answers nothing"
        answer = self._answer = self._loop.create_future()
        self._on_done = on_done
        self._deadline = self._loop.call_later(seconds, self._stop, "time", "its time is over")
        head, body = request
        sizes = template_worker.REQUEST.pack(len(head), len(body))
        self._unsent = memoryview(b"".join((sizes, head, body)))
        self._send()
        if self._unsent:
            self._loop.add_writer(self._socket.fileno(), self._send_more)
        return answer

    def end(self) -> None:
        """Kills the worker, waits for its end (milliseconds) and fails what is under way."""
        self._stop("died", "it is not needed any more", is_expected=True)
        self._process.wait()
        self._finish()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._stop("died", "")

    def _send_more(self) -> None:
        self._send()
        if not self._unsent and self._end is None:
            self._loop.remove_writer(self._socket.fileno())

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # Its exit code says more.
            self._stop("died", "")
        elif self._answer is None or self._unsent:
            self._stop("protocol", "it answers what nobody asked")
        else:
            self._received += data
            self._parse()

    def _parse(self) -> None:
        answer, start = template_worker.ANSWER, template_worker.ANSWER.size
        if len(self._received) < start:
            return
        kind, size = answer.unpack_from(self._received)
        max_bytes = self._max_bytes.get(kind)
        if max_bytes is None:
            self._stop("protocol", f"it answers with the kind {kind!r}")
        elif size > max_bytes or len(self._received) > start + size:
            self._stop("protocol", f"it answers with {size} bytes or more, over {max_bytes}")
        elif len(self._received) == start + size:
            with memoryview(self._received) as received:
                text = bytes(received[start:])
            self._received = bytearray()
            self._take(kind, text)

    def _take(self, kind: bytes, encoded: bytes) -> None:
        try:
            text = encoded.decode()
        except UnicodeDecodeError:
            self._stop("protocol", "it answers with bytes that are no UTF-8")
            return
        assert self._answer is not None
        assert self._deadline is not None
        answer, self._answer = self._answer, None
        self._deadline.cancel()
        if answer.done():
            pass
        elif kind == template_worker.LAID_OUT:
            answer.set_result(text)
        else:
            answer.set_exception(TemplateRefused(text))
        self._on_done()

    def _stop(self, cause: str, text: str, *, is_expected: bool = False) -> None:
        """Kills the worker; `_finish` follows when it is gone."""
        if self._end is not None:
            return
        self._end = TemplateEnded(cause, text)
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._unsent = memoryview(b"")
        self._received = bytearray()
        if self._deadline is not None:
            self._deadline.cancel()
        # It is not waited for before, so that the number is still its own.
        os.killpg(self._process.pid, signal.SIGKILL)
        if not is_expected:
            self._reap()

    def _reap(self) -> None:
        if self._process.poll() is None:
            self._loop.call_later(_REAP_SECONDS, self._reap)
            return
        assert self._end is not None
        if self._end.cause == "died":
            self._end = _end_of(self._process.returncode)
        self._on_end(self._end)
        self._finish()

    def _finish(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not self._loop.is_closed():
            assert self._end is not None
            if not answer.done():
                answer.set_exception(self._end)
            self._on_done()


def _end_of(code: int) -> TemplateEnded:
    if code == -signal.SIGPROF:
        return TemplateEnded("time", "its time is over")
    if code < 0:
        return TemplateEnded("died", f"signal {signal.Signals(-code).name}")
    return TemplateEnded("died", f"exit code {code}")
