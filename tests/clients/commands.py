"""Commands with bounds: what they start ends with them, and in time."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_NUM_LAST_LINES = 15


class ToolFailedError(Exception):
    """A tool did not do what it is expected to do; the message says what instead."""


async def run(
    command: Sequence[str], folder: Path, seconds: float, environment: Mapping[str, str]
) -> str:
    """Runs a command in a folder, whose `commands.log` gets what it writes, and returns that.

    Args:
        command: The path of the program and its arguments.
        folder: Where it runs.
        seconds: What it may take.
        environment: Variables, beside those of this process.

    Raises:
        ToolFailedError: It failed or did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    shown = " ".join((Path(command[0]).name, *command[1:]))
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        raise ToolFailedError(f"{shown} takes more than {seconds:.0f} s") from None
    finally:
        # Also after a good end: it may leave processes of its own behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    text = output.decode(errors="replace")
    with (folder / "commands.log").open("a") as log:
        log.write(f"$ {shown}\n{text}\n")
    if process.returncode:
        raise ToolFailedError(f"{shown} fails:\n" + "\n".join(text.splitlines()[-_NUM_LAST_LINES:]))
    return text


def expect(is_so: bool, otherwise: str) -> None:
    """Raises ToolFailedError with a sentence unless something is so."""
    if not is_so:
        raise ToolFailedError(otherwise)
