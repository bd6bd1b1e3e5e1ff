"""Listens for HTTP clients and runs the application on the router's own event loop."""

import asyncio
import socket
from contextlib import suppress

from starlette.types import Receive, Scope, Send
from uvicorn.config import Config

from router.http.app import make_app
from router.http.connection import Connection
from router.http.connections import Connections
from router.http.service import Service
from servicekit.acceptor import Acceptor
from servicekit.listening import listen

_KEEP_ALIVE_SECONDS = 75
"""Longer than what load balancers keep a connection without a request."""
_SPARE_CONNECTIONS = 1024
"""Beyond the requests that the router takes."""
_UNREAD_SPARE_SECONDS = 3.0
"""Beyond what slow readers get: one that reads on finds the reason behind what it left unread."""
_END_SECONDS = 1.0
"""Time for requests to end by themselves when their connections are gone."""
_MAX_HEAD_BYTES = 64 * 1024
_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    "connection: close\r\nretry-after: 1\r\ncontent-length: {}\r\n\r\n{}"
)


class HttpDoor:
    """The router's HTTP server."""

    def __init__(self, service: Service, max_requests: int) -> None:
        """Does not listen yet.

        Args:
            service: The router.
            max_requests: Requests that the router takes at once.
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
            max_requests + _SPARE_CONNECTIONS, lambda: self._acceptor.connection_closed()
        )
        self._acceptor = Acceptor("HTTP", self._take, self._connections.evict)
        self._connecting: set[asyncio.Task[None]] = set()

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
        if self._connections.is_full() and not self._connections.evict():
            self._refuse(accepted)
            return
        # asyncio does it only for sockets whose protocol is named, which these inherit as 0.
        with suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting = asyncio.get_running_loop().create_task(
            self._connect(accepted, peer), name="http connection"
        )
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(
            lambda: Connection(self._config, loop, self._connections, peer, self._unread_seconds),
            accepted,
        )

    def _refuse(self, accepted: socket.socket) -> None:
        number = self._connections.max_number
        text = f"all {number} connections have a request in progress; try again later\n"
        with accepted, suppress(OSError):
            # Unread input would turn the close into a reset, which may overtake the answer.
            with suppress(BlockingIOError):
                accepted.recv(_MAX_HEAD_BYTES)
            accepted.send(_FULL.format(len(text), text).encode())
