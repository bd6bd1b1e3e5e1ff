"""Listens for HTTP clients and runs the application on the router's own event loop."""

import asyncio
import logging
import socket
from collections import Counter
from contextlib import suppress

from starlette.types import Receive, Scope, Send
from uvicorn.config import Config

from router.http.app import make_app
from router.http.connection import Connection
from router.http.connections import Connections
from router.http.service import Service
from servicekit.acceptor import Acceptor
from servicekit.http_wire import why_not_tls
from servicekit.listening import listen
from servicekit.process import max_port_connections
from servicekit.rate_limit import RateLimit
from servicekit.tls import TlsSource

_KEEP_ALIVE_SECONDS = 75
"""Longer than what load balancers keep a connection without a request."""
_SPARE_CONNECTIONS = 1024
"""Beyond the requests that the router takes."""
_UNREAD_SPARE_SECONDS = 3.0
"""Beyond what slow readers get: one that reads on finds the reason behind what it left unread."""
_END_SECONDS = 1.0
"""Time for requests to end by themselves when their connections are gone."""
_MAX_HEAD_BYTES = 64 * 1024
_HANDSHAKE_SECONDS = 10.0
"""Time for a client to agree on TLS."""
_MAX_HANDSHAKES = 1024
"""Under way at once."""
_LOG_SECONDS = 5.0
"""Time between two log lines about handshakes that failed."""
_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    "connection: close\r\nretry-after: 1\r\ncontent-length: {}\r\n\r\n{}"
)

_logger = logging.getLogger(__name__)


class HttpDoor:
    """The router's HTTP server."""

    def __init__(self, service: Service, max_requests: int, tls: TlsSource | None = None) -> None:
        """Does not listen yet.

        Args:
            service: The router.
            max_requests: Requests that the router takes at once.
            tls: The certificate; None is plain text.
        """
        app = make_app(service)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            # Only `stop` cancels, and uvicorn would log that as a failure of the application.
            with suppress(asyncio.CancelledError):
                await app(scope, receive, send)

        self._config = Config(
            answer,
            interface="asgi3",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            # Nothing here is done by what a client says of its own address.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._unread_seconds = service.slow_readers.seconds + _UNREAD_SPARE_SECONDS
        self._connections = Connections(
            min(max_requests + _SPARE_CONNECTIONS, max_port_connections()),
            lambda: self._acceptor.connection_closed(),
        )
        self._acceptor = Acceptor("HTTP", self._take, self._evict)
        # With the addresses of their peers, the oldest first.
        self._connecting: dict[asyncio.Task[None], str] = {}
        self._tls = tls
        self._handshake_failures = RateLimit(1, _LOG_SECONDS)

    async def start(self, host: str, port: int, *, is_shared: bool = False) -> int:
        """Listens and returns the port, which is a free one if `port` is 0.

        Args:
            host: Name or address of this machine.
            port: The port.
            is_shared: Whether other processes listen on it, too.

        Raises:
            CannotListen: The port is in use, or the host is not this machine's.
        """
        listeners = listen(host, port, "http-port", is_shared=is_shared)
        self._acceptor.start(listeners)
        chosen: int = listeners[0].getsockname()[1]
        return chosen

    def drain(self) -> None:
        """Accepts no connection any more, and ends each one with its request."""
        self._acceptor.close()
        if self._tls is not None:
            for connecting in self._connecting:
                connecting.cancel()
        for connection in self._connections:
            connection.shutdown()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Ends all that is left. A second call does nothing.

        Args:
            grace_seconds: Time for requests to end by themselves.
        """
        self.drain()
        if self._connecting:
            await asyncio.wait(self._connecting)
        if tasks := set(self._connections.state.tasks):
            await asyncio.wait(tasks, timeout=grace_seconds)
        for connection in self._connections:
            connection.abort()
        # They end in the next iteration of the loop, which may be its last.
        await asyncio.sleep(0)
        if tasks := set(self._connections.state.tasks):
            _, late = await asyncio.wait(tasks, timeout=_END_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _take(self, accepted: socket.socket, peer: str) -> None:
        if len(self._connecting) >= _MAX_HANDSHAKES and self._tls is not None:
            self._evict_handshake()
        if self._connections.is_full() and not self._connections.evict():
            self._refuse(accepted)
            return
        connecting = asyncio.get_running_loop().create_task(
            self._connect(accepted, peer), name="http connection"
        )
        self._connecting[connecting] = peer
        connecting.add_done_callback(self._connected)

    def _connected(self, connecting: asyncio.Task[None]) -> None:
        self._connecting.pop(connecting, None)
        if self._tls is not None:
            # The handshake may have failed, which frees a file descriptor.
            self._acceptor.connection_closed()

    def _evict(self) -> bool:
        return self._evict_handshake() or self._connections.evict()

    def _evict_handshake(self) -> bool:
        """Gives up the oldest handshake of the peer that has most; returns whether there is one."""
        if self._tls is None or not self._connecting:
            return False
        peer = Counter(self._connecting.values()).most_common(1)[0][0]
        oldest = next(one for one, of in self._connecting.items() if of == peer)
        del self._connecting[oldest]
        oldest.cancel()
        return True

    async def _connect(self, accepted: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(self._config, loop, self._connections, peer, self._unread_seconds)

        if self._tls is None:
            await loop.connect_accepted_socket(make, accepted)
            return
        try:
            await loop.connect_accepted_socket(
                make,
                accepted,
                ssl=self._tls.current().context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                # Also for what is not read yet when the connection ends.
                ssl_shutdown_timeout=self._unread_seconds,
            )
        except OSError as error:
            self._tell(peer, error)

    def _tell(self, peer: str, error: OSError) -> None:
        num_held = self._handshake_failures.take(asyncio.get_running_loop().time())
        if num_held is not None:
            _logger.warning(
                "HTTP client has no TLS connection peer=%s num_unlogged=%d error=%s",
                peer,
                num_held,
                why_not_tls(error),
            )

    def _refuse(self, accepted: socket.socket) -> None:
        if self._tls is not None:
            # It would not understand an answer.
            accepted.close()
            return
        number = self._connections.max_number
        text = f"all {number} connections have a request in progress; try again later\n"
        with accepted, suppress(OSError):
            # Unread input would turn the close into a reset, which may overtake the answer.
            with suppress(BlockingIOError):
                accepted.recv(_MAX_HEAD_BYTES)
            accepted.send(_FULL.format(len(text), text).encode())
