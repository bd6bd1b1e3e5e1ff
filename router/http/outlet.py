"""Where one answer goes: a client's connection, as far as it is that answer's."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from router.access.caller import Caller

_EXTENSION = "pagestream.outlet"


class Outlet:
    """The transport as an answer sees it.

    A whole answer comes through uvicorn: its head goes with the first bytes of the body, as ASGI
    has it, and its end is that of the connection in its own time. A stream comes past uvicorn,
    whose messages take longer than all else that is done for an event.

    Attributes:
        close: Ends the connection after the answer.
        is_closing: Whether the connection takes nothing any more.
        request_id: The ID of the request.
        caller: Who asks; None if no API keys are needed.
    """

    __slots__ = (
        "_cycle",
        "_flow",
        "_head",
        "_is_chunked",
        "_limit",
        "_write",
        "caller",
        "close",
        "is_closing",
        "request_id",
    )

    def __init__(self, cycle: RequestResponseCycle, close: Callable[[], None]) -> None:
        """Has sent nothing yet.

        Args:
            cycle: What uvicorn knows of the request and its answer.
            close: Ends the connection after the answer.
        """
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write
        self._head = b"" if cycle.scope["method"] == "HEAD" else None
        # A client of HTTP/1.0 does not know chunks: its answer ends with the connection.
        self._is_chunked = cycle.scope["http_version"] != "1.0"
        self._limit: asyncio.Timeout | None = None
        self.request_id = ""
        self.caller: Caller | None = None
        self.close = close
        self.is_closing = cycle.transport.is_closing
        cycle.scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]

    def write(self, data: bytes) -> None:
        """Sends what uvicorn makes of an answer."""
        if self._head is None and self._cycle.response_started:
            self._head = data
        else:
            self._send(data)

    def set_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Sets headers of the answer, whatever it will be."""
        self._cycle.default_headers = headers

    @property
    def has_whole_request(self) -> bool:
        """Whether all of the request's body has come."""
        return not self._cycle.more_body

    @property
    def has_begun(self) -> bool:
        """Whether the head of the answer has been sent."""
        return self._cycle.response_started

    @property
    def is_held_up(self) -> bool:
        """Whether the client has left something unread that the system does not hold."""
        return self._flow.write_paused

    async def wait_read(self) -> None:
        """Waits until the client has read all, or has left."""
        while self._flow.write_paused and not self._cycle.disconnected:
            await self._flow.drain()

    def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Begins a stream, whose status is 200; its head goes with its first bytes."""
        cycle = self._cycle
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        parts = [STATUS_LINE[200]]
        for name, value in (*headers, *cycle.default_headers):
            parts += (name, b": ", value, b"\r\n")
        if self._is_chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def send(self, content: bytes) -> None:
        """Sends bytes of a stream, at least one, in one piece."""
        self._send(self._chunk(content))

    def end(self, content: bytes) -> None:
        """Sends the last bytes of a stream, at least one."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        self._send(self._chunk(content) + (b"0\r\n\r\n" if self._is_chunked else b""))
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.close()
        cycle.on_response()

    def forsake(self) -> None:
        """Notes that the client has left."""
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())

    def until_client_leaves(self) -> AbstractAsyncContextManager[None]:
        """Ends the block when the client closes its connection; the body must have been read.

        Raises:
            ClientDisconnect: By the block, or at once: the client has left.
        """
        if self._cycle.disconnected:
            raise ClientDisconnect
        self._limit = asyncio.timeout(None)
        return _UntilClientLeaves(self._limit, self._stay)

    def _stay(self) -> None:
        """Notes that no block ends when the client leaves."""
        self._limit = None

    def _chunk(self, content: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(content), content) if self._is_chunked else content

    def _send(self, data: bytes) -> None:
        """Sends, unless the client has left: the transport would refuse it."""
        if self._head:
            data, self._head = self._head + data, b""
        if not self.is_closing():
            self._write(data)


class _UntilClientLeaves(AbstractAsyncContextManager[None]):
    """A class, as a generator would double what it costs a request."""

    __slots__ = ("_end", "_limit")

    def __init__(self, limit: asyncio.Timeout, end: Callable[[], None]) -> None:
        self._limit = limit
        self._end = end

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise ClientDisconnect from None


def outlet_of(scope: Scope) -> Outlet:
    """Returns where the answer to a request goes."""
    outlet: Outlet = scope["extensions"][_EXTENSION]
    return outlet
