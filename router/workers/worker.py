"""One worker of a router, as its supervisor sees it."""

import asyncio
import logging
import multiprocessing
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from prometheus_client import Metric

from router.config import RouterConfig
from router.server.worker_link import (
    ASK,
    CannotStart,
    Listening,
    Message,
    Report,
    StateChange,
    messages,
)
from router.workers.worker_process import run_worker
from servicekit.child_process import start_without_signals

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_EXIT_SECONDS = 5.0
"""Time for a process to end after its end of the connection has."""

_logger = logging.getLogger(__name__)


class Worker:
    """A place that one process after another takes.

    Attributes:
        number: Which worker it is, from 0.
        is_ready: Whether its process accepts new requests.
        has_listened: Set once a process has listened.
        cannot_start: Why its last process could not start, if it said so.
    """

    def __init__(
        self,
        number: int,
        config: RouterConfig,
        on_report: Callable[[int, Sequence[Metric]], None],
    ) -> None:
        """Without a process yet.

        Args:
            number: Which worker it is.
            config: Its settings.
            on_report: Gets its number and what it reports.
        """
        self.number = number
        self.is_ready = False
        self.has_listened = asyncio.Event()
        self.cannot_start: str | None = None
        self._config = config
        self._on_report = on_report
        self._process: SpawnProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._is_listening = False
        self._asked: deque[asyncio.Future[None]] = deque()

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    async def run(self, *, waits_until_ready: bool) -> str:
        """Runs a process until it has ended; returns how it ended, in words.

        Args:
            waits_until_ready: Whether it listens only when it is ready.

        Raises:
            OSError: The system cannot start another process.
        """
        ours, theirs = socket.socketpair()
        self.cannot_start = None
        with closing(theirs):
            process = multiprocessing.get_context("spawn").Process(
                target=run_worker,
                args=(self._config, self.number, theirs),
                kwargs={"waits_until_ready": waits_until_ready},
                name=f"pagestream-router-worker-{self.number}",
            )
            try:
                start_without_signals(process)
            except BaseException:
                ours.close()
                raise
        self._process = process
        _logger.info("worker started worker=%d pid=%d", self.number, process.pid)
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
            with closing(self._writer):
                async for message in messages(reader):
                    self._take(message)
            await asyncio.to_thread(process.join, _EXIT_SECONDS)
        finally:
            process.kill()
            process.join(_EXIT_SECONDS)
            self._forget()
        return _end_of(process.exitcode)

    def ask(self) -> asyncio.Future[None]:
        """Asks for a report; the result comes with it, or when there is nothing to wait for."""
        answered = asyncio.get_running_loop().create_future()
        if self._writer is None or not self._is_listening:
            answered.set_result(None)
        else:
            self._asked.append(answered)
            self._writer.write(ASK)
        return answered

    def terminate(self) -> None:
        """Asks the process to end, if there is one."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process at once, if there is one."""
        if self._process is not None:
            self._process.kill()

    def _take(self, message: Message) -> None:
        match message:
            case Listening():
                self._is_listening = True
                self.has_listened.set()
            case StateChange():
                self.is_ready = message.is_ready
            case CannotStart():
                self.cannot_start = message.reason
            case Report():
                self._on_report(self.number, message.families)
                self._answer(message.num_asked)

    def _answer(self, number: int) -> None:
        for _ in range(number):
            answered = self._asked.popleft()
            if not answered.done():
                answered.set_result(None)

    def _forget(self) -> None:
        self._process = self._writer = None
        self.is_ready = self._is_listening = False
        self._answer(len(self._asked))


def _end_of(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by signal {-exit_code}"
    return f"its process ended with exit code {exit_code}"
