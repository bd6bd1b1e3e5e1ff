"""Services as processes that a test ends, stops and starts again on the port where they were."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]
_LEASH = _ROOT / "servicekit" / "leash.py"
_EXIT_SECONDS = 30.0
_random = random.SystemRandom()  # tests seed the other


class ServiceProcess:
    """`python -m <arguments>`, which serves on `address` while it runs.

    Args:
        arguments: A module and its options, those of the ports included.
        port: Where it serves gRPC.
        log_path: Where its output goes, of all starts.
        python: The interpreter whose modules it finds.
    """

    def __init__(
        self, arguments: Sequence[str], port: int, log_path: Path, python: str = sys.executable
    ) -> None:
        self.port = port
        self.address = f"{HOST}:{port}"
        self.log_path = log_path
        self._command = (python, "-m", *arguments)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The running process's ID."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Starts it; it listens some time later."""
        # -I and -S: without the packages the leash starts in no time.
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())]
        leash.append(str(int(signal.SIGTERM)))
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*leash, *self._command),
                cwd=_ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the running process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Waits for the end of the process; returns its exit code."""
        assert self._process is not None
        async with asyncio.timeout(_EXIT_SECONDS):
            return await self._process.wait()

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends it by a signal; returns its exit code."""
        self.send_signal(number)
        return await self.wait()

    async def close(self) -> None:
        """Ends it, whatever state it is in, unless it has ended."""
        if self._process is not None:
            # A process that is stopped can be killed all the same.
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def fake_engine(port: int, log_path: Path, *options: str) -> ServiceProcess:
    """Returns a fake engine, not started; options are those of `tests.fakes.fake_engine`."""
    arguments = ["tests.fakes.fake_engine", "--port", str(port), *options]
    return ServiceProcess(arguments, port, log_path)


def with_few_files(max_files: int) -> tuple[str, ...]:
    """Returns what to begin a command with that shall hold few files: half may be raised to all.

    A function run after the fork could not: where threads of gRPC run, the child may die of it.
    """
    limit = f"ulimit -S -n {max_files // 2} && ulimit -H -n {max_files}"
    return ("sh", "-c", f'{limit} && exec "$@"', "sh")


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on; no other worker of pytest gets them."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # Below those that the system gives to whoever asks for any.
    candidates = range(10_000 + worker, 30_000, num_workers)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind((HOST, _random.choice(candidates)))
                found.append(one.getsockname()[1])
        return found


@contextlib.asynccontextmanager
async def running(*services: ServiceProcess) -> AsyncIterator[None]:
    """Starts all; none is left at the end, whatever ended it."""
    try:
        for service in services:
            await service.start()
        yield
    finally:
        for service in services:
            await service.close()
