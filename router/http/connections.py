"""All connections of HTTP clients: how many there may be, and which one gives way."""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from uvicorn.server import ServerState

if TYPE_CHECKING:
    from router.http.connection import Connection


class Connections:
    """Holds the connections, and gives up one that has sent no whole request if it must.

    That is the oldest of the peer that has most of them, so that a client that sends its request
    at once is answered while others flood the port. Behind a proxy all clients are one peer.

    Attributes:
        max_number: The most that there may be.
        state: What uvicorn knows of them.
    """

    def __init__(self, max_number: int, on_closed: Callable[[], None]) -> None:
        """Holds none yet.

        Args:
            max_number: The most that there may be.
            on_closed: Called when one has ended and its file descriptor is free.
        """
        self.max_number = max_number
        self.state = ServerState()
        self._on_closed = on_closed
        # By peer, the oldest first.
        self._waiting: dict[str, dict[Connection, None]] = {}

    def __iter__(self) -> "Iterator[Connection]":
        return iter(list(self.state.connections))  # type: ignore[arg-type]

    def awaits_client(self, connection: "Connection") -> None:
        """Notes that a connection awaits a request, or the rest of one."""
        self._waiting.setdefault(connection.peer, {})[connection] = None

    def answers(self, connection: "Connection") -> None:
        """Notes that a connection has a whole request."""
        waiting = self._waiting.get(connection.peer)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[connection.peer]

    def closed(self, connection: "Connection") -> None:
        """Notes that a connection has ended."""
        self.answers(connection)
        asyncio.get_running_loop().call_soon(self._on_closed)

    def is_full(self) -> bool:
        """Returns whether one has to go before another comes."""
        return len(self.state.connections) >= self.max_number

    def evict(self) -> bool:
        """Closes one that awaits its client; returns whether there was one."""
        if not self._waiting:
            return False
        most: dict[Connection, None] = max(self._waiting.values(), key=len)
        connection = next(iter(most))
        self.answers(connection)
        # At once, as the connection ends only in the next iteration of the loop.
        self.state.connections.discard(connection)
        connection.abort()
        return True
