"""The bytes of one connection to an HTTP port: in plain text, or through TLS.

Neither end waits for one that speaks the other way: its first byte tells.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from servicekit.tls import TlsSource

_HANDSHAKE = b"\x16"
"""The first byte of TLS, which no request in plain text begins with."""


_PLAIN_TEXT = "the client speaks plain text, but this port speaks TLS: use https://"
_NO_RECORD = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER")
"""What OpenSSL calls bytes that are no TLS."""


class WrongProtocol(Exception):
    """The client speaks TLS where there is none, or the reverse; the text says so."""


class Wire:
    """A connection that a server has accepted."""

    def __init__(self, accepted: socket.socket, tls: TlsSource | None) -> None:
        """Takes a socket that does not block; `tls` has the certificate, None is plain text."""
        self._socket = accepted
        # The socket of TLS is another object, with the same descriptor.
        self._descriptor = accepted.fileno()
        self._tls = tls
        self._react: Callable[[], None] | None = None
        self._has_begun = False
        self._is_shaken = False
        self._is_writer_set = False

    def follow(self, react: Callable[[], None]) -> None:
        """Calls `react` whenever there may be something to receive."""
        self._react = react
        asyncio.get_running_loop().add_reader(self._descriptor, react)

    def leave(self) -> None:
        """Ends what `follow` began."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._let_write(is_waiting=False)

    def receive(self, max_bytes: int) -> bytes | None:
        """Returns what has come: None is nothing yet, and no bytes are the end.

        Raises:
            WrongProtocol: The client speaks otherwise; what is sent then is in plain text.
            OSError: The connection is lost, or the client does not agree on TLS.
        """
        self._let_write(is_waiting=False)
        try:
            if not self._has_begun and not self._begin():
                return b""
            if self._tls is not None and not self._is_shaken:
                self._secure.do_handshake()
                self._is_shaken = True
            return self._socket.recv(max_bytes)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._let_write(is_waiting=True)
            return None

    async def send(self, content: bytes) -> None:
        """Sends all of it.

        Raises:
            OSError: The connection is lost.
        """
        loop = asyncio.get_running_loop()
        if not self._is_shaken:
            await loop.sock_sendall(self._socket, content)
            return
        left = memoryview(content)
        while left:
            try:
                left = left[self._secure.send(left) :]
            except ssl.SSLWantReadError:
                await _once(loop.add_reader, loop.remove_reader, self._descriptor)
            except ssl.SSLWantWriteError:
                await _once(loop.add_writer, loop.remove_writer, self._descriptor)

    def end(self, max_bytes: int) -> None:
        """Lets the client see the end of what was sent; reads so many bytes that it left unread."""
        # Unread input would turn the close into a reset, which may overtake what was sent.
        with contextlib.suppress(OSError):
            self._socket.recv(max_bytes)
        if self._is_shaken:
            # It does not wait for the client to say the same.
            with contextlib.suppress(OSError):
                self._secure.unwrap()

    def close(self) -> None:
        """Closes the connection; what follows it is let go."""
        self.leave()
        self._react = None
        self._socket.close()

    @property
    def _secure(self) -> ssl.SSLSocket:
        assert isinstance(self._socket, ssl.SSLSocket), "of a wire with TLS that has begun"
        return self._socket

    def _begin(self) -> bool:
        """Looks at the first byte; returns whether there is one."""
        first = self._socket.recv(1, socket.MSG_PEEK)
        if not first:
            return False
        if (first == _HANDSHAKE) != (self._tls is not None):
            # From now on, what is read is thrown away, and what is sent is not encrypted.
            self._has_begun, self._tls = True, None
            raise WrongProtocol(
                "the client speaks TLS, but this port does not: use http://"
                if first == _HANDSHAKE
                else _PLAIN_TEXT
            )
        if self._tls is not None:
            context = self._tls.current().context
            assert context is not None, "of a server"
            self._socket = context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
        self._has_begun = True
        return True

    def _let_write(self, *, is_waiting: bool) -> None:
        """Also calls what follows when something can be sent, or no longer."""
        loop = asyncio.get_running_loop()
        if is_waiting:
            assert self._react is not None, "a wire that receives is followed"
            loop.add_writer(self._descriptor, self._react)
        elif self._is_writer_set:
            loop.remove_writer(self._descriptor)
        self._is_writer_set = is_waiting


def why_not_tls(error: OSError) -> str:
    """Returns why a client and a server did not agree on TLS, for the server's log."""
    if not isinstance(error, ssl.SSLError):
        return str(error) or "the client left in the middle of its handshake"
    if isinstance(error, ssl.SSLEOFError):
        return "the client left in the middle of its handshake; it may not trust the certificate"
    if error.reason in _NO_RECORD:
        return _PLAIN_TEXT
    return (error.reason or str(error)).replace("_", " ").lower()


async def _once(add: Callable[..., Any], remove: Callable[..., Any], descriptor: int) -> None:
    """Waits until a descriptor is ready."""
    ready = asyncio.Event()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)
