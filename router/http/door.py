"""Listens for HTTP clients and runs the application on the router's own event loop."""

import asyncio

from uvicorn.config import Config
from uvicorn.server import ServerState

from router.http.app import make_app
from router.http.connection import Connection
from router.http.service import Service
from servicekit.listening import listen

_KEEP_ALIVE_SECONDS = 75
"""Longer than what load balancers keep a connection without a request."""
_SPARE_CONNECTIONS = 1024
"""Beyond the requests that the router takes."""
_BACKLOG = 1024


class HttpDoor:
    """The router's HTTP server."""

    def __init__(self, service: Service, max_requests: int) -> None:
        """Does not listen yet.

        Args:
            service: The router.
            max_requests: Requests that the router takes at once.
        """
        self._config = Config(
            make_app(service),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._state = ServerState()
        self._max_connections = max_requests + _SPARE_CONNECTIONS
        self._servers: list[asyncio.Server] = []

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which is a free one if `port` is 0.

        Raises:
            CannotListen: The port is in use, or the host is not this machine's.
        """
        loop = asyncio.get_running_loop()
        listeners = listen(host, port, "http-port")
        for listener in listeners:
            server = await loop.create_server(
                lambda: Connection(self._config, self._state, loop, self._max_connections),
                sock=listener,
                backlog=_BACKLOG,
            )
            self._servers.append(server)
        chosen: int = listeners[0].getsockname()[1]
        return chosen

    def drain(self) -> None:
        """Accepts no connection any more, and ends each one with its request."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Ends all that is left. A second call does nothing.

        Args:
            grace_seconds: Time for requests to end by themselves.
        """
        self.drain()
        tasks = set(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for connection in list(self._state.connections):
            connection.shutdown()
            assert isinstance(connection, Connection)
            connection.transport.close()
        self._servers.clear()
