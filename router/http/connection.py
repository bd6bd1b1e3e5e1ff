"""One connection of an HTTP client: uvicorn's protocol with bounds on time, bytes and number."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_HEAD_SECONDS = 10.0
"""Time for the head of a request, from the connection's begin or the head's first byte."""
_MAX_HEAD_BYTES = 64 * 1024
_REFUSED = (
    b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)


class Connection(HttpToolsProtocol):
    """Closes a connection whose client is too slow, sends too much, or is one too many."""

    def __init__(
        self, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop, max_number: int
    ) -> None:
        super().__init__(config, state, {}, loop)
        self._max_number = max_number
        self._num_head_bytes = 0
        self._is_in_head = True
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins, or refuses the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_number:
            text = f"there are {self._max_number} connections already; try again later\n"
            self._refuse("503 Service Unavailable", text)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what the client has sent."""
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._head_deadline is None:
                self._expect_head()
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes > _MAX_HEAD_BYTES:
            text = f"the head of the request has over {_MAX_HEAD_BYTES} bytes\n"
            self._refuse("431 Request Header Fields Too Large", text)

    def on_headers_complete(self) -> None:
        """Begins to answer."""
        self._stop_deadline()
        self._is_in_head, self._num_head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expects the next head, whose bytes may already be there."""
        super().on_message_complete()
        self._is_in_head = True

    def _expect_head(self) -> None:
        self._head_deadline = self.loop.call_later(_HEAD_SECONDS, self._close)

    def _stop_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _close(self) -> None:
        self._head_deadline = None
        self.transport.close()

    def _refuse(self, status: str, text: str) -> None:
        body: Any = text.encode()
        self.transport.write(_REFUSED % (status.encode(), len(body), body))
        self.transport.close()
