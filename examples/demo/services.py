"""Starts the demo's services as processes of their own, waits for them and stops them.

Every process leads a session of its own, so that Ctrl-C in the terminal reaches the demo alone,
which then stops each service together with whatever that service started. A demo that is killed
can stop nothing: its services are on a leash that makes them end when it has.
"""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from examples.demo.errors import DemoFailedError, ServiceFailedError

HOST = "127.0.0.1"
STOP_SECONDS = 10.0
"""What a service has between SIGTERM and SIGKILL."""
_ROOT = Path(__file__).resolve().parents[2]
_LEASH = _ROOT / "servicekit" / "leash.py"
_POLL_SECONDS = 0.05
_PROBE_TIMEOUT = 2.0
_EXIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One running service.

    Attributes:
        name: For the reader, such as "engine-0".
        address: Where it serves gRPC, "host:port".
        operations_address: Where it serves /metrics, /livez and /readyz over HTTP, "host:port".
        log_path: Where its output goes.
        process: The leader of its process group.
    """

    name: str
    address: str
    operations_address: str
    log_path: Path
    process: "subprocess.Popen[bytes]"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus would scrape it."""
        return f"http://{self.operations_address}/metrics"

    def last_words(self, num_lines: int = 1) -> str:
        """Returns the end of its output."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
        return "\n".join(lines[-num_lines:])

    def is_ready(self) -> bool:
        """Asks its readiness probe, as Kubernetes would."""
        with contextlib.suppress(OSError, urllib.error.URLError):
            return bool(http_get(self.operations_address, "/readyz"))
        return False


class Services:
    """Owns the processes: all of them are gone when the context ends, whatever ended it."""

    def __init__(self, log_folder: Path, *, folder: Path = _ROOT) -> None:
        """Keeps the services' output in `log_folder`, one file each; `folder` holds their code."""
        self._log_folder = log_folder
        self._folder = folder
        self._services: list[Service] = []
        self._ports: set[int] = set()

    async def __aenter__(self) -> Self:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    def start(self, name: str, arguments: Sequence[str]) -> Service:
        """Starts `python -m <arguments> --host … --port … --operations-port …` on free ports."""
        port, operations_port = self.free_ports(2)
        log_path = self._log_folder / f"{name}.log"
        # -I and -S: without the packages it starts in no time.
        command = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())]
        command.append(str(int(signal.SIGTERM)))
        command += [sys.executable, "-m", *arguments]
        command += ["--host", HOST, "--port", str(port), "--operations-port", str(operations_port)]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,
            )
        service = Service(
            name=name,
            address=f"{HOST}:{port}",
            operations_address=f"{HOST}:{operations_port}",
            log_path=log_path,
            process=process,
        )
        self._services.append(service)
        return service

    async def wait_ready(
        self, services: Sequence[Service], seconds: float, show: Callable[[Service, str], None]
    ) -> None:
        """Waits until every one is ready, and tells `show` the latest of each meanwhile.

        Raises:
            ServiceFailedError: One of them ended, or is not ready after so many `seconds`.
        """
        deadline = time.monotonic() + seconds
        waiting = list(services)
        while waiting:
            for service in list(waiting):
                self.check()
                if await asyncio.to_thread(service.is_ready):
                    waiting.remove(service)
                    show(service, "ready")
                elif time.monotonic() > deadline:
                    raise ServiceFailedError(
                        f"{service.name} is not ready after {seconds:.0f} s; its output is in "
                        f"{service.log_path} and ends with:\n{service.last_words(10)}"
                    )
                else:
                    show(service, service.last_words() or "starting")
            await asyncio.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Raises ServiceFailedError when a service has ended."""
        for service in self._services:
            code = service.process.poll()
            if code is not None:
                raise ServiceFailedError(
                    f"{service.name} ended with exit code {code}; its last words:\n"
                    f"{service.last_words(10)}"
                )

    @contextlib.asynccontextmanager
    async def failures_first(self) -> AsyncIterator[None]:
        """Puts the failure of a service that has ended in the place of what followed from it."""
        try:
            yield
        except DemoFailedError:
            await asyncio.sleep(_EXIT_SECONDS)  # it may take a moment to end
            self.check()
            raise

    def free_ports(self, count: int) -> list[int]:
        """Returns ports that nothing listened on a moment ago and no service was given before."""
        with contextlib.ExitStack() as stack:
            ports: list[int] = []
            while len(ports) < count:
                candidate = stack.enter_context(socket.socket())
                candidate.bind((HOST, 0))
                port = candidate.getsockname()[1]
                # A port given to a service that does not listen yet looks free.
                if port not in self._ports:
                    ports.append(port)
        self._ports.update(ports)
        return ports

    async def _stop(self) -> None:
        """Asks every process to end, and ends those that do not; a cancellation hurries it."""
        try:
            for service in self._services:
                service.process.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for service in self._services:
                # A Popen has no event to wait for; asyncio's own can lose a process that is
                # cancelled while it starts.
                while service.process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            for service in self._services:
                # Also after a good end: it may have left a process of its own behind.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(service.process.pid, signal.SIGKILL)
                service.process.wait()


def http_get(address: str, path: str) -> str:
    """Returns the body of a GET with status 200; other ends raise an OSError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=_PROBE_TIMEOUT) as response:
            body: bytes = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"{address}{path} gave half an answer: {error!r}") from error
    return body.decode()
