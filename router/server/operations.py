"""The operations port: /metrics, /livez and /readyz in plain HTTP, for Prometheus and Kubernetes.

It answers from the event loop that serves requests, so that a loop that hangs fails its liveness
probe; the text of the metrics is made in a thread.
"""

import asyncio
import http
import logging
import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from router.errors import StartupError
from router.server.health import Health

_REQUEST_SECONDS = 5.0
_MAX_HEADER_BYTES = 16 * 1024
_MAX_CONNECTIONS = 64
_PLAIN_TEXT = "text/plain; charset=utf-8"

_Answer = tuple[http.HTTPStatus, str, bytes]
_logger = logging.getLogger(__name__)


class OperationsServer:
    """Answers GET on three paths, one request per connection."""

    def __init__(
        self, health: Health, registry: CollectorRegistry, before_scrape: Callable[[], None]
    ) -> None:
        """Listens to nothing yet.

        Args:
            health: What the probes answer.
            registry: What a scrape shows.
            before_scrape: Called on the event loop ahead of each scrape.
        """
        self._health = health
        self._registry = registry
        self._before_scrape = before_scrape
        self._server: asyncio.Server | None = None
        self._num_connections = 0

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which is a free one if `port` is 0.

        Raises:
            StartupError: The port is in use, or the host is not this machine's.
        """
        try:
            self._server = await asyncio.start_server(
                self._handle, host, port, limit=_MAX_HEADER_BYTES
            )
        except OSError as error:
            raise cannot_listen(host, port, "operations-port", error) from None
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
                    writer.write(_encode(*await self._answer(reader)))
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _logger.debug("operations request was broken off")
            writer.transport.abort()
        finally:
            self._num_connections -= 1

    async def _answer(self, reader: asyncio.StreamReader) -> _Answer:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *header_lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return http.HTTPStatus.METHOD_NOT_ALLOWED, _PLAIN_TEXT, b"use GET\n"
        if path == "/metrics":
            encode, content_type = _choose_encoder(_accepted(header_lines))
            self._before_scrape()
            body = await asyncio.to_thread(encode, self._registry)
            return http.HTTPStatus.OK, content_type, body
        if path == "/livez":
            return self._probe(is_well=True)
        if path == "/readyz":
            return self._probe(is_well=self._health.is_ready)
        return http.HTTPStatus.NOT_FOUND, _PLAIN_TEXT, b"there are /metrics, /livez, /readyz\n"

    def _probe(self, *, is_well: bool) -> _Answer:
        status = http.HTTPStatus.OK if is_well else http.HTTPStatus.SERVICE_UNAVAILABLE
        return status, _PLAIN_TEXT, f"{self._health.state.value}\n".encode()


def cannot_listen(host: str, port: int, option: str, error: OSError) -> StartupError:
    """Returns the error of a port that cannot be listened on, naming the option to change."""
    # asyncio words the error at length; a name that cannot be resolved has a negative number.
    number = error.errno or 0
    why = os.strerror(number) if number > 0 else error.strerror
    return StartupError(
        f"cannot listen on {host}:{port} ({why}); choose another --{option} or --host"
    )


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


def _encode(status: http.HTTPStatus, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
