"""A small HTTP server for probes and scrapes that stays responsive whatever its port is sent.

A connection serves one request, with a time limit to send it and one to read the answer. If there
are too many connections, the oldest that has sent no request is closed, first among those of the
same peer. So a client that sends its request at once is always answered.
"""

import asyncio
import functools
import http
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from servicekit.acceptor import Acceptor
from servicekit.http_wire import Wire, WrongProtocol, why_not_tls
from servicekit.listening import listen
from servicekit.rate_limit import RateLimit
from servicekit.tls import TlsSource

_MAX_HEADER_BYTES = 16 * 1024
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
"""Time limit to make an answer and have it read; the same as Prometheus's own timeout."""
_STOP_SECONDS = 1.0
"""Time for pending answers to finish at shutdown."""
_MAX_CONNECTIONS = 128
_MAX_PEER_CONNECTIONS = 16
"""Per IP address."""
_LOG_SECONDS = 5.0
"""Time between two log lines about clients that do not agree with the server on TLS."""
_PLAIN_TEXT = "text/plain; charset=utf-8"
_END_OF_HEAD = b"\r\n\r\n"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A handler's answer; plain text by default."""

    body: bytes
    status: http.HTTPStatus = http.HTTPStatus.OK
    content_type: str = _PLAIN_TEXT


Handler = Callable[[str], Awaitable[Answer]]
"""Answers a GET or HEAD; its argument is the header Accept, or an empty text."""


class _Connection:
    """One connection and its deadlines."""

    def __init__(self, wire: Wire, peer: str) -> None:
        self.wire = wire
        self.peer = peer
        self.deadline: asyncio.TimerHandle | None = None
        self.received = bytearray()
        self.answering: asyncio.Task[None] | None = None
        """Set when the request is complete."""

    @property
    def is_leaving(self) -> bool:
        """Whether it is closed in the next iteration of the loop."""
        return self.answering is not None and self.answering.cancelling() > 0

    def end_waiting(self) -> None:
        """Removes the deadline for the request."""
        if self.deadline is not None:
            self.deadline.cancel()


class HttpServer:
    """Answers GET and HEAD on some paths, one request per connection."""

    def __init__(self, handlers: Mapping[str, Handler], tls: TlsSource | None = None) -> None:
        """Does not listen yet.

        Args:
            handlers: By path.
            tls: The certificate; None is plain text.
        """
        self._handlers = handlers
        self._tls = tls
        self._disagreements = RateLimit(1, _LOG_SECONDS)
        # The oldest first.
        self._connections: dict[_Connection, None] = {}
        self._acceptor = Acceptor("operations", self._take, lambda: self._evict(self._connections))

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which is a free one if `port` is 0.

        Raises:
            CannotListen: The port is in use, or the host is not this machine's.
        """
        listeners = listen(host, port, "operations-port")
        self._acceptor.start(listeners)
        chosen: int = listeners[0].getsockname()[1]
        return chosen

    async def stop(self) -> None:
        """Stops listening and closes all connections; pending answers get a second."""
        self._acceptor.close()
        for connection in [one for one in self._connections if one.answering is None]:
            self._close(connection)
        if tasks := [one.answering for one in self._connections if one.answering]:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _take(self, accepted: socket.socket, peer: str) -> None:
        staying = [one for one in self._connections if not one.is_leaving]
        of_peer = [one for one in staying if one.peer == peer]
        if len(of_peer) >= _MAX_PEER_CONNECTIONS:
            self._make_room(of_peer)
        elif len(staying) >= _MAX_CONNECTIONS:
            self._make_room(staying)
        loop = asyncio.get_running_loop()
        connection = _Connection(Wire(accepted, self._tls), peer)
        connection.deadline = loop.call_later(_REQUEST_SECONDS, self._close, connection)
        self._connections[connection] = None
        connection.wire.follow(functools.partial(self._read, connection))
        # In plain text, the request has usually arrived by now, and then no later connection can
        # evict this one.
        self._read(connection)

    def _make_room(self, connections: Collection[_Connection]) -> None:
        """Closes the oldest connection without a request, else the oldest awaiting its answer."""
        if not self._evict(connections):
            oldest = next(one.answering for one in connections if one.answering)
            oldest.cancel()

    def _evict(self, connections: Collection[_Connection]) -> bool:
        """Closes the oldest that has sent no request yet; returns whether there was one."""
        for connection in connections:
            if connection.answering is None:
                self._close(connection)
                return True
        return False

    def _read(self, connection: _Connection) -> None:
        try:
            received = connection.wire.receive(_MAX_HEADER_BYTES)
        except WrongProtocol as error:
            self._tell(connection.peer, str(error))
            self._start(connection, functools.partial(_refuse, str(error)))
            return
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._tell(connection.peer, why_not_tls(error))
            received = b""
        if received is None:
            return
        connection.received += received
        head, end, _ = connection.received.partition(_END_OF_HEAD)
        if end:
            respond = functools.partial(self._respond, head.decode("latin-1"))
            self._start(connection, respond)
        elif not received or len(connection.received) > _MAX_HEADER_BYTES:
            self._close(connection)

    def _start(self, connection: _Connection, respond: Callable[[], Awaitable[bytes]]) -> None:
        """Answers a connection from which nothing more is needed."""
        connection.end_waiting()
        connection.wire.leave()
        # Ends with its connection; `stop` waits for that.
        connection.answering = asyncio.get_running_loop().create_task(
            self._answer(connection, respond), name="operations request"
        )

    def _tell(self, peer: str, reason: str) -> None:
        num_held = self._disagreements.take(asyncio.get_running_loop().time())
        if num_held is not None:
            _logger.warning(
                "operations client not served peer=%s num_unlogged=%d error=%s",
                peer,
                num_held,
                reason,
            )

    def _close(self, connection: _Connection) -> None:
        connection.end_waiting()
        connection.wire.close()
        del self._connections[connection]
        self._acceptor.connection_closed()

    async def _answer(
        self, connection: _Connection, respond: Callable[[], Awaitable[bytes]]
    ) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await connection.wire.send(await respond())
        except (OSError, TimeoutError):
            _logger.debug("operations request aborted")
        else:
            connection.wire.end(_MAX_HEADER_BYTES)
        finally:
            self._close(connection)

    async def _respond(self, head: str) -> bytes:
        request_line, *header_lines = head.split("\r\n")
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            status = http.HTTPStatus.METHOD_NOT_ALLOWED
            return _encode(Answer(status=status, body=b"use GET or HEAD\n"))
        content = _encode(await self._call(path, header_lines))
        if method == "HEAD":
            # The headers are those of a GET.
            content = content.partition(_END_OF_HEAD)[0] + _END_OF_HEAD
        return content

    async def _call(self, path: str, header_lines: list[str]) -> Answer:
        handler = self._handlers.get(path)
        if handler is None:
            known = f"not found; paths are {', '.join(self._handlers)}\n"
            return Answer(status=http.HTTPStatus.NOT_FOUND, body=known.encode())
        try:
            return await handler(_accepted(header_lines))
        # A failing request must not fail the service.
        except Exception:
            _logger.exception("operations request failed path=%s", path)
            status = http.HTTPStatus.INTERNAL_SERVER_ERROR
            return Answer(status=status, body=b"the service failed; its log says why\n")


async def _refuse(reason: str) -> bytes:
    return _encode(Answer(status=http.HTTPStatus.BAD_REQUEST, body=f"{reason}\n".encode()))


def _accepted(header_lines: list[str]) -> str:
    for line in header_lines:
        name, _, value = line.partition(":")
        if name.lower() == "accept":
            return value.strip()
    return ""


def _encode(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + answer.body
