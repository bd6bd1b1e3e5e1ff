"""Processes of a measurement: watched from outside, most on one core each, always ended."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
"""Of this checkout."""
_LEASH = ROOT / "servicekit/leash.py"
_END = str(int(signal.SIGTERM))
_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05


class Cores(NamedTuple):
    """Who runs where. Engines and clients share a core on a machine of two, and all on one of one.

    Attributes:
        router: The core of the measured.
        engines: That of all engines.
        clients: That of all clients.
    """

    router: int
    engines: int
    clients: int


def cores() -> Cores:
    """Returns the cores of this machine, as far apart as it has them."""
    available = sorted(os.sched_getaffinity(0))
    return Cores(available[0], available[len(available) // 2], available[-1])


class Process:
    """A process, on one core or, with None for it, on all.

    Attributes:
        name: For messages.
        log: Where its output goes.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, core: int | None, log: Path, root: Path = ROOT
    ) -> None:
        self.name = name
        self.log = log
        own = os.sched_getaffinity(0)
        # Inherited, by all threads.
        os.sched_setaffinity(0, own if core is None else {core})
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), _END, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=root,
                )
        finally:
            os.sched_setaffinity(0, own)

    def wait_until(self, is_ready: Callable[[], bool], seconds: float = _READY_SECONDS) -> Self:
        """Waits until it can be used.

        Raises:
            RuntimeError: It ended, or the wait took too long; with the end of its output.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} is not ready; its output ends with:\n{words}")
            time.sleep(_POLL_SECONDS)
        return self

    def result(self, seconds: float = 0.0) -> dict[str, Any]:
        """Returns the JSON that it has printed at its end, for which this waits so many seconds.

        Raises:
            RuntimeError: It failed or runs on; with the end of its output.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        output = self.log.read_text(errors="replace")
        try:
            result: dict[str, Any] = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError) as error:
            state = "runs on" if self.is_running() else "failed"
            raise RuntimeError(
                f"{self.name} {state}; its output ends with:\n{output[-2000:]}"
            ) from error
        return result

    def is_running(self) -> bool:
        """Returns whether it has not ended yet."""
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """Returns the time of all its threads on a processor so far."""
        # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of Linux; /proc tells it in steps of 10 ms.
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def resident_mb(self) -> float:
        """Returns its memory, in 10^6 bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)

    def stop(self) -> None:
        """Asks it to end, and ends it when it does not."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Processes:
    """Those that are running; all are ended with the context.

    Args:
        folder: For their output, one file each.
        pins: Whether they keep to the cores that they are started on.
    """

    def __init__(self, folder: Path, *, pins: bool = True) -> None:
        self._folder = folder
        self._pins = pins
        self._stack = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def start(
        self, name: str, arguments: Sequence[str], *, core: int, root: Path = ROOT
    ) -> Process:
        """Starts `python -m ARGUMENTS` of a checkout, this one by default, on a core."""
        self._count += 1
        log = self._folder / f"{self._count}-{name}.log"
        command = [sys.executable, "-m", *arguments]
        process = Process(name, command, core=core if self._pins else None, log=log, root=root)
        self._stack.callback(process.stop)
        return process

    @contextlib.contextmanager
    def scope(self) -> Iterator[Self]:
        """Ends on its exit what was started within."""
        with type(self)(self._folder, pins=self._pins) as inner:
            inner._count = self._count
            yield inner
            self._count = inner._count


def accepts(address: str) -> bool:
    """Returns whether something listens there."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
        return True
    return False
