"""A command on a terminal of its own, at which a test types and reads."""

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

_READ_BYTES = 65_536
_TAKE_TERMINAL = """import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Lets Ctrl-C at the terminal reach the command, also if whoever runs the tests ignores it."""
_WAIT_SECONDS = 30.0


class Terminal:
    """The terminal's other end.

    Attributes:
        output: All that the command wrote so far.
    """

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self.output = ""
        self._descriptor = descriptor
        self._process = process
        self._position = 0
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def type(self, keys: str) -> None:
        """Types; a key with Ctrl is its control character."""
        os.write(self._descriptor, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Changes the size, as dragging a window does."""
        _set_size(self._descriptor, rows, columns)

    async def expect(self, text: str) -> str:
        """Waits until the text appears behind what was expected before.

        Returns:
            What is between the two.

        Raises:
            TimeoutError: It did not come.
        """
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                while (found := self.output.find(text, self._position)) < 0:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"{text!r} is not in {self.output[self._position :]!r}") from None
        between = self.output[self._position : found]
        self._position = found + len(text)
        return between

    async def interrupt_until(self, text: str) -> None:
        """Types Ctrl-C, as often as it takes until the text appears.

        `input` overlooks a signal that comes just before it begins to wait for keys.

        Raises:
            TimeoutError: It did not come.
        """
        async with asyncio.timeout(_WAIT_SECONDS):
            while text not in self.output[self._position :]:
                self.type("\x03")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        self._changed.clear()
                        await self._changed.wait()
        await self.expect(text)

    async def exit_code(self) -> int:
        """Waits for the end of the command."""
        async with asyncio.timeout(_WAIT_SECONDS):
            return await self._process.wait()

    def _read(self) -> None:
        try:
            content = os.read(self._descriptor, _READ_BYTES)
        except OSError:  # the command has closed its end
            content = b""
        if not content:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.output += content.decode(errors="replace")
        self._changed.set()


def _set_size(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.asynccontextmanager
async def on_terminal(
    command: Sequence[str], folder: Path, environment: dict[str, str], size: tuple[int, int]
) -> AsyncIterator[Terminal]:
    """Runs a command on a terminal of so many rows and columns; kills it at the end."""
    ours, theirs = pty.openpty()
    _set_size(ours, *size)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _TAKE_TERMINAL, *command),
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
