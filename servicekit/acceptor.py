"""Accepts connections, also when the process is short of file descriptors."""

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Iterable

from servicekit.rate_limit import RateLimit

_ACCEPTS_AT_ONCE = 8
_RETRY_SECONDS = 1.0
_LOG_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class Acceptor:
    """Accepts on some listeners; asyncio's own loop logs a thousand errors without descriptors."""

    def __init__(
        self, port: str, take: Callable[[socket.socket, str], None], evict: Callable[[], bool]
    ) -> None:
        """Does not accept yet.

        Args:
            port: What the port is called in the log.
            take: Gets each connection and the address of its peer.
            evict: Closes a connection that can be given up; returns whether there was one.
        """
        self._port = port
        self._take = take
        self._evict = evict
        self._listeners: list[socket.socket] = []
        self._paused: set[socket.socket] = set()
        self._spare = _Spare()
        self._failures = RateLimit(1, _LOG_SECONDS)

    def start(self, listeners: Iterable[socket.socket]) -> None:
        """Begins to accept; closes the listeners later."""
        self._listeners = list(listeners)
        self._spare.fill()
        for listener in self._listeners:
            self._listen(listener)

    def close(self) -> None:
        """Closes the listeners. A second call does nothing."""
        loop = asyncio.get_running_loop()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            loop.remove_reader(listener)
            listener.close()
        self._paused.clear()
        self._spare.empty()

    def connection_closed(self) -> None:
        """Goes on, as a file descriptor has come free."""
        if self._listeners:
            self._spare.fill()
            while self._paused:
                self._listen(self._paused.pop())

    def _listen(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                accepted, (peer, *_) = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Without a free descriptor, `accept` fails before it checks for a waiting client.
                if _is_waited_for(listener):
                    self._tell(error)
                    self._make_room(error, listener)
                return
            accepted.setblocking(False)
            self._take(accepted, peer)

    def _make_room(self, error: OSError, listener: socket.socket) -> None:
        """Frees a descriptor for the next iteration of the loop, or accepts again later."""
        is_short = error.errno in (errno.EMFILE, errno.ENFILE)
        if is_short and (self._spare.empty() or self._evict()):
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(_RETRY_SECONDS, self._listen, listener)
        self._paused.add(listener)

    def _tell(self, error: OSError) -> None:
        num_held = self._failures.take(asyncio.get_running_loop().time())
        if num_held is not None:
            _logger.error(
                "%s port is short of system resources num_unlogged=%d error=%s",
                self._port,
                num_held,
                error.strerror,
            )


class _Spare:
    """A spare file descriptor, so that a client is answered even when no other is left."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def fill(self) -> None:
        """Reserves a descriptor, if one is free."""
        if self._descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def empty(self) -> bool:
        """Releases it; returns whether there was one."""
        if self._descriptor is None:
            return False
        os.close(self._descriptor)
        self._descriptor = None
        return True


def _is_waited_for(listener: socket.socket) -> bool:
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    return bool(waiting.poll(0))
