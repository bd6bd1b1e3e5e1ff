"""Moves messages between an event loop and the core process, on two threads."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from itertools import islice
from multiprocessing.connection import Connection

from engine_service.core.types import CoreInput, Request

_logger = logging.getLogger(__name__)

_MAX_UNDELIVERED = 64
"""Messages that may wait for the event loop; beyond this, the core waits for the server."""

_MAX_REQUESTS = 32
"""Per message: the core reads this many prompts of a thousand tokens in a fraction of a step."""


class CoreChannel:
    """Connects an event loop to the core; only `join` blocks.

    Submissions and cancellations made while the core is busy are sent together. `on_message` gets
    the core's messages on the event loop, in order. `on_closed` is called once, on the event loop,
    when the core is gone or `on_message` raised; no call follows it.
    """

    def __init__(
        self,
        connection: Connection,
        on_message: Callable[[object], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._connection = connection
        # Closing a connection under a thread that reads it is unsafe; shutting its socket is not.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._slots = threading.Semaphore(_MAX_UNDELIVERED)
        self._changed = threading.Condition()
        self._requests: dict[int, Request] = {}
        self._cancelled_ids: list[int] = []
        self._describes_blocks: bool | None = None
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._read, name="core-reader", daemon=True),
            threading.Thread(target=self._write, name="core-writer", daemon=True),
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request) -> None:
        """Sends a request to the core."""
        with self._changed:
            self._requests[request.request_id] = request
            self._changed.notify()

    def cancel(self, request_id: int) -> None:
        """Cancels a request, before the core sees it where possible."""
        with self._changed:
            if self._requests.pop(request_id, None) is None:
                self._cancelled_ids.append(request_id)
                self._changed.notify()

    def describe_blocks(self, is_wanted: bool) -> None:
        """Asks the core to describe cached blocks from now on, or no longer."""
        with self._changed:
            self._describes_blocks = is_wanted
            self._changed.notify()

    def close(self) -> None:
        """Ends the connection, which ends the core. `on_closed` is not called after this."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            _logger.debug("core connection was closed already")
        self._slots.release()

    def join(self, timeout: float) -> None:
        """Waits for the threads after `close`, at most `timeout` seconds each; blocks."""
        for thread in self._threads:
            thread.join(timeout)
        self._socket.close()
        self._connection.close()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not (
                    self._requests
                    or self._cancelled_ids
                    or self._describes_blocks is not None
                    or self._is_closed
                ):
                    self._changed.wait()
                if self._is_closed:
                    return
                request_ids = list(islice(self._requests, _MAX_REQUESTS))
                message = CoreInput(
                    requests=[self._requests.pop(request_id) for request_id in request_ids],
                    cancelled_ids=self._cancelled_ids,
                    describes_blocks=self._describes_blocks,
                )
                self._cancelled_ids = []
                self._describes_blocks = None
            try:
                self._connection.send(message)
            except OSError:
                # The reader also sees the end of the connection and reports it.
                return

    def _read(self) -> None:
        try:
            while True:
                self._slots.acquire()
                self._post(self._deliver, self._connection.recv())
        except (EOFError, OSError):
            self._post(self._report_closed)
        except Exception:
            _logger.exception("unreadable message from the core")
            self._post(self._report_closed)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The event loop has ended; there is nothing left to notify.
            _logger.debug("message from the core after the end of the event loop")

    def _deliver(self, message: object) -> None:
        self._slots.release()
        if self._is_closed:
            return
        try:
            self._on_message(message)
        except Exception:
            _logger.exception("message from the core could not be handled")
            self._report_closed()

    def _report_closed(self) -> None:
        if not self._is_closed:
            self.close()
            self._on_closed()
