"""The ports of a service, above all that of operations: plain HTTP for Prometheus and for probes.

It answers from the event loop that serves requests, so that a loop that hangs fails its liveness
probe; the text of the metrics is made in a thread.
"""

import asyncio
import http
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_REQUEST_SECONDS = 5.0
_MAX_HEADER_BYTES = 16 * 1024
_MAX_CONNECTIONS = 64
_PLAIN_TEXT = "text/plain; charset=utf-8"

_logger = logging.getLogger(__name__)


class CannotListen(Exception):
    """A port cannot be listened on; the text says why, and which option to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a handler answers; a text unless it says otherwise."""

    body: bytes
    status: http.HTTPStatus = http.HTTPStatus.OK
    content_type: str = _PLAIN_TEXT


Handler = Callable[[str], Awaitable[Answer]]
"""Answers a GET; gets the header Accept, or an empty text."""


class OperationsServer:
    """Answers GET on some paths, one request per connection."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """Listens to nothing yet; `handlers` are by path."""
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._num_connections = 0

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which is a free one if `port` is 0.

        Raises:
            CannotListen: The port is in use, or the host is not this machine's.
        """
        try:
            self._server = await asyncio.start_server(
                self._handle, host, port, limit=_MAX_HEADER_BYTES
            )
        except OSError as error:
            raise _cannot_listen(host, port, "operations-port", _words(error)) from None
        chosen: int = self._server.sockets[0].getsockname()[1]
        return chosen

    async def stop(self) -> None:
        """Stops listening; answers under way are finished within their deadline."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                if self._num_connections <= _MAX_CONNECTIONS:
                    writer.write(_encode(await self._answer(reader)))
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _logger.debug("operations request was broken off")
            writer.transport.abort()
        finally:
            self._num_connections -= 1

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *header_lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return Answer(status=http.HTTPStatus.METHOD_NOT_ALLOWED, body=b"use GET\n")
        handler = self._handlers.get(path)
        if handler is None:
            known = f"there are {', '.join(self._handlers)}\n"
            return Answer(status=http.HTTPStatus.NOT_FOUND, body=known.encode())
        return await handler(_accepted(header_lines))


def metrics_handler(
    registry: CollectorRegistry, before_scrape: Callable[[], None] | None = None
) -> Handler:
    """Returns the handler of a scrape.

    Args:
        registry: What a scrape shows.
        before_scrape: Called on the event loop ahead of each scrape.
    """

    async def answer(accepted: str) -> Answer:
        encode, content_type = _choose_encoder(accepted)
        if before_scrape is not None:
            before_scrape()
        body = await asyncio.to_thread(encode, registry)
        return Answer(content_type=content_type, body=body)

    return answer


def probe_handler(check: Callable[[], tuple[bool, str]]) -> Handler:
    """Returns the handler of a probe; `check` says whether all is well, and in which state."""

    async def answer(_: str) -> Answer:
        is_well, state = check()
        status = http.HTTPStatus.OK if is_well else http.HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status=status, body=f"{state}\n".encode())

    return answer


def address(host: str, port: int) -> str:
    """Returns "host:port", with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_grpc_port(add_insecure_port: Callable[[str], int], host: str, port: int) -> int:
    """Makes a gRPC server listen and returns the port, which is a free one if `port` is 0.

    Args:
        add_insecure_port: The server's method.
        host: Name or address of this machine.
        port: The port.

    Raises:
        CannotListen: The port is in use, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Of a port in use gRPC would log lines of its own, and not say why.
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
        return add_insecure_port(address(host, port))
    except OSError as error:
        raise _cannot_listen(host, port, "port", _words(error)) from None
    except RuntimeError as error:
        raise _cannot_listen(host, port, "port", str(error)) from None


def _cannot_listen(host: str, port: int, option: str, why: str) -> CannotListen:
    return CannotListen(
        f"cannot listen on {address(host, port)} ({why}); choose another --{option} or --host"
    )


def _words(error: OSError) -> str:
    # asyncio words the error at length; a name that cannot be resolved has a negative number.
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error.strerror)


def _accepted(header_lines: list[str]) -> str:
    for line in header_lines:
        name, _, value = line.partition(":")
        if name.lower() == "accept":
            return value.strip()
    return ""


def _choose_encoder(accepted: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accepted)
    except (TypeError, ValueError):
        # The header asks for a version that is no number.
        return choose_encoder("")


def _encode(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + answer.body
