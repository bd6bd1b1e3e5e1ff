"""A command that a test runs to its end."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    output: str
    errors: str


async def run_command(
    command: Sequence[str], folder: Path, seconds: float = 100.0, text: str | None = None
) -> Ended:
    """Runs a command in a folder; kills it if it takes longer than so many seconds.

    A text is what it reads from its standard input, which otherwise is that of the tests.

    Raises:
        TimeoutError: It took longer.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdin=None if text is None else pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate(None if text is None else text.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())
