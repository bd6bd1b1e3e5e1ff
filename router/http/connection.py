"""One connection of an HTTP client: uvicorn's protocol with bounds on time, bytes and number.

A client that ends its sending side has left: what it asked for is cancelled at once. HTTP has no
other sign of it, and every client that closes its connection gives this one.
"""

import asyncio
import http
from contextlib import suppress

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router.http.connections import Connections
from router.http.outlet import Outlet, outlet_of

_HEAD_SECONDS = 10.0
"""Time for the head of a request, from the connection's begin or the head's first byte."""
_LINGER_SECONDS = 2.0
"""Time to read an answer that came before the request's end: a close would overtake it."""
_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADERS = 128
_MAX_EARLY_BYTES = 64 * 1024
"""Sent before the answers to earlier requests have ended."""
_MAX_EARLY_REQUESTS = 16
_MAX_BYTES_PER_BYTE = 2
"""What a byte of a body may take on its way, chunks included, beyond `_FREE_BYTES`."""
_FREE_BYTES = 16 * 1024
_PIECE_BYTES = 16 * 1024
"""Parsed before the bounds are looked at again."""


class _Fault(Exception):
    """A request that the application does not see."""

    def __init__(self, status: http.HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


_NOT_HTTP = (http.HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request that can be read")
_LARGE_HEAD = (
    http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the head of the request has over {_MAX_HEAD_BYTES} bytes",
)
_MANY_HEADERS = (
    http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the request has over {_MAX_HEADERS} headers",
)
_WASTEFUL_BODY = (
    http.HTTPStatus.BAD_REQUEST,
    f"a byte of the body takes over {_MAX_BYTES_PER_BYTE} bytes on its way; make the chunks larger",
)


class Connection(HttpToolsProtocol):
    """Closes a connection whose client is too slow, sends too much or does not read.

    Attributes:
        peer: Address of the client's machine.
    """

    def __init__(
        self,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
        peer: str,
        unread_seconds: float,
    ) -> None:
        """Begins when it gets its transport.

        Args:
            config: Of uvicorn.
            loop: The running loop.
            connections: Are told what this one waits for.
            peer: Address of the client's machine.
            unread_seconds: Time that a client may leave unread what was sent to it.
        """
        super().__init__(config, connections.state, {}, loop)
        self.peer = peer
        self._all = connections
        self._unread_seconds = unread_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._active: RequestResponseCycle | None = None
        """Its answer is under way, or was the last; those in `pipeline` come after it."""
        self._is_in_head = True
        self._is_body_pending = False
        self._is_deaf = False
        """Whether what the client sends is not HTTP/1.1 any more."""
        self._is_lingering = False
        self._num_wire_bytes = 0
        """Of the head or the body that is being received."""
        self._num_body_bytes = 0
        self._num_early_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins."""
        super().connection_made(transport)
        # Each message waits until the one before has gone, as over gRPC. With TLS, the loop counts
        # a buffer as full that has reached the limit, and keeps 64 KiB of its own behind it.
        is_tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if is_tls else 0)
        self._all.awaits_client(self)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what was asked for."""
        self._stop_deadline()
        self._stop_unread()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self._forsake()
        super().connection_lost(exc)
        self._all.closed(self)

    def eof_received(self) -> None:
        """Takes it as the client's leaving; an answer that has ended is still sent."""
        if self._is_answering:
            self.abort()

    def abort(self) -> None:
        """Closes the connection at once; nothing more is sent."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Takes what the client has sent."""
        if self._is_deaf or self._is_lingering or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        try:
            # A piece at a time, as one read may hold tens of thousands of chunks.
            for start in range(0, len(data), _PIECE_BYTES):
                self._feed(data[start : start + _PIECE_BYTES])
        except httptools.HttpParserUpgrade:
            # It is answered as if it had asked for nothing else, and what follows is not HTTP/1.1.
            self.cycle.keep_alive = False
            self._is_deaf = True
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, _Fault) else _Fault(*_NOT_HTTP))
        except _Fault as fault:
            self._refuse(fault)
        else:
            if self._is_in_head and self._deadline is None and not self._is_answering:
                self._expect_head()

    def _feed(self, piece: bytes) -> None:
        self._num_wire_bytes += len(piece)
        if self._is_answering and (self.pipeline or not self._is_body_pending):
            self._num_early_bytes += len(piece)
        self.parser.feed_data(piece)
        self._check_bytes()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header; those behind a body mean nothing here."""
        if not self._is_in_head:
            return
        if len(self.headers) == _MAX_HEADERS:
            raise _Fault(*_MANY_HEADERS)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begins to answer, or lets the request wait for the answers before."""
        if len(self.pipeline) == _MAX_EARLY_REQUESTS:
            raise _Fault(*_NOT_HTTP)
        self._stop_deadline()
        self._is_in_head, self._is_body_pending = False, True
        self._num_wire_bytes = self._num_body_bytes = 0
        super().on_headers_complete()
        self.cycle.transport = Outlet(self.cycle, self._end)  # type: ignore[assignment]
        if self.pipeline:
            # uvicorn reads no more then, and would not notice that the client leaves.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._num_body_bytes += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT and not self.pipeline:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Expects the next head, whose bytes may already be there."""
        super().on_message_complete()
        self._is_in_head, self._is_body_pending = True, False
        self._num_wire_bytes = 0
        if self._is_answering:
            self._all.answers(self)

    def on_response_complete(self) -> None:
        """Goes on to the next request, or waits for one."""
        if self._is_lingering:
            return
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if not self._is_answering:
            self._num_early_bytes = 0
            if self._is_body_pending:
                self._end()
            else:
                self._all.awaits_client(self)
                if self._num_wire_bytes and self._is_in_head:
                    self._expect_head()

    def pause_writing(self) -> None:
        """Notes that the client has not read all."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._unread_seconds, self.abort)

    def resume_writing(self) -> None:
        """Notes that the client has read all, or the system holds it."""
        super().resume_writing()
        self._stop_unread()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def _forsake(self) -> None:
        """Lets the answer under way end; uvicorn does it to the request that came last."""
        if self._active is not None:
            self._active.disconnected = True
            self._active.message_event.set()
            outlet_of(self._active.scope).forsake()  # type: ignore[arg-type]

    @property
    def _is_answering(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _check_bytes(self) -> None:
        if self._num_early_bytes > _MAX_EARLY_BYTES:
            raise _Fault(*_NOT_HTTP)
        if self._is_in_head:
            if self._num_wire_bytes > _MAX_HEAD_BYTES:
                raise _Fault(*_LARGE_HEAD)
        elif self._num_wire_bytes > _FREE_BYTES + _MAX_BYTES_PER_BYTE * self._num_body_bytes:
            raise _Fault(*_WASTEFUL_BODY)

    def _refuse(self, fault: _Fault) -> None:
        """Answers instead of the application, and closes the connection."""
        if self._active is not None and self._is_answering:
            if self.pipeline or self._active.response_started:
                # The client would take it for a part of the answer under way.
                self.abort()
                return
            self._forsake()
        body = f"{fault}\n".encode()
        head = (
            f"HTTP/1.1 {fault.status.value} {fault.status.phrase}\r\n"
            "content-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._linger()

    def _end(self) -> None:
        """Closes the connection after the last answer."""
        if self._is_body_pending:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Closes the connection once the client has read, though it may still be sending."""
        self._is_lingering = True
        self._unset_keepalive_if_required()
        self._stop_deadline()
        # Only now, as a fault may have stopped it in the middle.
        self.flow.resume_reading()
        # The client may have gone. TLS has no end of one direction alone.
        with suppress(OSError):
            if not self.transport.is_closing() and self.transport.can_write_eof():
                self.transport.write_eof()
        self._deadline = self.loop.call_later(_LINGER_SECONDS, self.abort)
        self._all.awaits_client(self)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(_HEAD_SECONDS, self._close)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close(self) -> None:
        self._deadline = None
        self.transport.close()
