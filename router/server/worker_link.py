"""The connection of a worker, one of several processes of a router, to its supervisor.

The supervisor sends one byte for each report that it asks for. A worker's messages are pickled,
each after its length in four bytes. Both ends are ours, and no client's bytes get there unread.
"""

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric

ASK = b"?"
"""Asks a worker for a report."""
_LENGTH = struct.Struct("!I")
_MAX_ASKED = 4096
_SEND_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """The worker's health has changed, or is the first one."""

    is_ready: bool


@dataclass(frozen=True, slots=True)
class Listening:
    """The worker takes connections from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotStart:
    """The worker cannot serve; the reason is one line for a person."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The worker's metrics.

    Attributes:
        num_asked: How many requests for a report it answers; 0 if it comes unasked.
        families: Everything in its registry.
    """

    num_asked: int
    families: list[Metric]


Message = StateChange | Listening | CannotStart | Report


def pack(message: Message) -> bytes:
    """Returns a message as it is sent."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """Yields the messages of a worker until its process has ended."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            [length] = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            message: Message = pickle.loads(await reader.readexactly(length))
            yield message


class WorkerLink:
    """A worker's end of the connection.

    Args:
        ours: One socket of a pair.
        waits_until_ready: Whether the worker listens only when it is ready, since others that are
            share its ports.
    """

    def __init__(self, ours: socket.socket, *, waits_until_ready: bool) -> None:
        self.waits_until_ready = waits_until_ready
        self._socket = ours
        # Of the same connection, for what is to be said when the event loop has ended.
        self._last = ours.dup()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, registry: CollectorRegistry, before_report: Callable[[], None]) -> None:
        """Answers the supervisor.

        Args:
            registry: The worker's metrics.
            before_report: Called on the event loop before each report.
        """
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        # Of its own: the loop's threads may all wait for a silent name server.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reports")
        loop = asyncio.get_running_loop()
        while asked := await reader.read(_MAX_ASKED):
            before_report()
            report = await loop.run_in_executor(thread, _report, registry, len(asked))
            if not self._writer.is_closing():
                self._writer.write(report)

    def tell(self, message: Message) -> None:
        """Sends a message."""
        if self._writer is None:
            self._last.sendall(pack(message))
        elif not self._writer.is_closing():
            self._writer.write(pack(message))

    async def close(self, registry: CollectorRegistry) -> None:
        """Sends a last report: what the worker has counted outlives it."""
        if self._writer is not None and not self._writer.is_closing():
            # The end of the process takes along what is still to be written.
            self._writer.transport.set_write_buffer_limits(high=0)
            self._writer.write(_report(registry, 0))
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_SEND_SECONDS):
                    await self._writer.drain()


def _report(registry: CollectorRegistry, num_asked: int) -> bytes:
    return pack(Report(num_asked=num_asked, families=list(registry.collect())))
