"""A service as a child process: its output, its end, and that it never outlives this process."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import servicekit
from pagestream.environment import python_modules
from pagestream.serve.plan import Service
from protos.wire.printable import escape
from servicekit.daemon_thread import run_in_daemon_thread

_LEASH = Path(servicekit.__file__).with_name("leash.py")
_MAX_LINE_BYTES = 8192
"""A longer line is cut in several."""
_MAX_LAST_LINES = 50
_LAST_OUTPUT_SECONDS = 2.0
"""Time for the last output to arrive after the end of a process."""
_ESCAPE_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\r(?!$)|\n)", re.DOTALL)

OnLine = Callable[[Service, str, bool], None]
"""Takes the service, a line of its output, and whether another line is to take its place."""


class Child:
    """The process of a service, and all that it starts: one process group.

    Attributes:
        service: What it runs.
        exit_code: How it ended, or None while it runs; as of `subprocess.Popen.returncode`.
        last_lines: The last lines of its output.
    """

    def __init__(self, service: Service, on_line: OnLine) -> None:
        """Does not start it yet; `on_line` gets its output."""
        self.service = service
        self.exit_code: int | None = None
        self.last_lines: deque[str] = deque(maxlen=_MAX_LAST_LINES)
        self._on_line = on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._has_ended = asyncio.Event()

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts the process in a session of its own, which Ctrl-C in the terminal does not reach.

        Args:
            environment: Its variables, beside those of the service.
        """
        # -I and -S: without the packages it starts in no time.
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())]
        self._process = subprocess.Popen(
            [*leash, str(int(signal.SIGKILL)), *python_modules(), *self.service.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, **self.service.environment},
            start_new_session=True,
        )

    async def run(self) -> None:
        """Reads the output of the started process until it and all that it started have ended."""
        assert self._process is not None, "not started"
        pid = self._process.pid
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(reader))
                # Leaves the process's number taken until nothing uses it any more.
                await run_in_daemon_thread(
                    lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT), f"wait of {pid}"
                )
                self.kill()
                # What has left the group may hold the pipe.
                await asyncio.wait([reading], timeout=_LAST_OUTPUT_SECONDS)
                reading.cancel()
        finally:
            transport.close()
            self.kill()
            self.exit_code = self._process.wait()
            self._has_ended.set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of `run`, up to so many seconds; returns whether it has come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_ended.wait()
        return self._has_ended.is_set()

    def terminate(self) -> None:
        """Asks the process to end, unless it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process and all that it started at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while received := await reader.read(_MAX_LINE_BYTES):
            rest += received
            end = 0
            for match in _LINE.finditer(rest):
                end = match.end()
                self._take(match[1], is_passing=match[2] == b"\r")
            rest = rest[end:]
            if len(rest) > _MAX_LINE_BYTES:
                self._take(rest, is_passing=False)
                rest = b""
        self._take(rest, is_passing=False)

    def _take(self, line: bytes, *, is_passing: bool) -> None:
        text = escape(_ESCAPE_SEQUENCE.sub(b"", line).decode(errors="replace").rstrip())
        if text:
            if not is_passing:
                self.last_lines.append(text)
            self._on_line(self.service, text, is_passing)
