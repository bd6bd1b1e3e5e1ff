"""What is measured and what it is measured with: engines, routers and clients as processes."""

import bisect
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.router.processes import HOST, ROOT, Process, Processes, accepts, cores
from benchmarks.router.stream_client import MODEL
from examples.demo.services import http_get
from tests.fakes.service_process import free_ports

_SAMPLE_SECONDS = 0.05
_CLIENT_SECONDS = 120.0
SMG_PACKAGES = "smg smg-grpc-proto"
WAYS = {"router": "router, gRPC", "http": "router, HTTP", "smg": "smg, HTTP"}
"""Targets of clients through a router, and what their rows are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A process and where it serves.

    Attributes:
        process: It.
        address: Of gRPC, of the peer HTTP.
        operations_address: Where its metrics are, if they are anywhere.
        http_address: Of the router's HTTP door, if it has one.
    """

    process: Process
    address: str
    operations_address: str = ""
    http_address: str = ""

    def address_for(self, target: str) -> str:
        """Returns what a kind of client calls; see `stream_client`."""
        return self.http_address if target == "http" else self.address


def smg_is_installed() -> bool:
    """Returns whether the peer and the stubs of its worker protocol can be imported."""
    return all(importlib.util.find_spec(name) for name in ("smg", "smg_grpc_proto"))


def start_engine(
    processes: Processes,
    tokenizer: Path,
    *,
    step_seconds: float,
    module: str = "lean_engine",
    options: Sequence[str] = (),
) -> Service:
    """Starts a lean engine on a core that is not the router's."""
    (port,) = free_ports(1)
    address = f"{HOST}:{port}"
    arguments = [f"benchmarks.router.{module}", "--port", str(port), "--tokenizer", str(tokenizer)]
    arguments += ["--step-seconds", str(step_seconds), *options]
    process = processes.start(module, arguments, core=cores().engines)
    return Service(process=process.wait_until(lambda: accepts(address)), address=address)


def start_router(
    processes: Processes,
    engine: str,
    root: Path = ROOT,
    *,
    with_http: bool = False,
    options: Sequence[str] = (),
) -> Service:
    """Starts our router, of this checkout or another, on a core of its own."""
    port, operations_port, http_port = free_ports(3)
    arguments = ["router", "--engines", engine, "--port", str(port), *options]
    arguments += ["--operations-port", str(operations_port)]
    if with_http:
        arguments += ["--http-port", str(http_port)]
    process = processes.start("router", arguments, core=cores().router, root=root)
    operations_address = f"{HOST}:{operations_port}"
    process.wait_until(lambda: answers(operations_address, "/readyz"))
    return Service(
        process=process,
        address=f"{HOST}:{port}",
        operations_address=operations_address,
        http_address=f"{HOST}:{http_port}" if with_http else "",
    )


def start_smg(processes: Processes, engine: str, tokenizer: Path) -> Service:
    """Starts Shepherd Model Gateway on the router's core, quiet and without limits of its own."""
    port, prometheus_port = free_ports(2)
    arguments = ["smg", "launch", "--host", HOST, "--port", str(port)]
    arguments += ["--prometheus-port", str(prometheus_port), "--log-level", "warn"]
    arguments += ["--worker-urls", f"grpc://{engine}"]
    arguments += ["--tokenizer-path", str(tokenizer), "--model-path", str(tokenizer)]
    process = processes.start("smg", arguments, core=cores().router)
    process.wait_until(
        lambda: (
            answers(f"{HOST}:{port}", "/readiness")
            and f'"{MODEL}"' in http_get(f"{HOST}:{port}", "/v1/models")
        )
    )
    return Service(process=process, address=f"{HOST}:{port}")


def answers(address: str, path: str) -> bool:
    """Returns whether a GET there succeeds."""
    try:
        http_get(address, path)
    except OSError:
        return False
    return True


class CpuTrack:
    """Time of a process on the processor, sampled, so that any window can be looked up later."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._moments: list[float] = []
        self._seconds: list[float] = []
        self.sample()

    def sample(self) -> None:
        """Notes where the process is now."""
        self._moments.append(time.perf_counter())
        self._seconds.append(self._process.cpu_seconds())

    def between(self, start: float, end: float) -> float:
        """Returns the seconds that it used in a window."""
        return self._at(end) - self._at(start)

    def _at(self, moment: float) -> float:
        index = min(max(bisect.bisect(self._moments, moment), 1), len(self._moments) - 1)
        (m0, m1), (s0, s1) = (
            values[index - 1 : index + 1] for values in (self._moments, self._seconds)
        )
        return s0 + (s1 - s0) * (moment - m0) / (m1 - m0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How a client calls; see `stream_client`."""

    target: str
    address: str
    requests: int
    concurrency: int
    connections: int
    max_tokens: int
    prompt: str = "text"


def run_client(
    processes: Processes, calls: Calls, watched: dict[str, Process]
) -> tuple[dict[str, Any], dict[str, CpuTrack]]:
    """Runs one client to its end, as `run_clients` does."""
    (result,), tracks = run_clients(processes, [calls], watched)
    return result, tracks


def run_clients(
    processes: Processes, each: Sequence[Calls], watched: dict[str, Process]
) -> tuple[list[dict[str, Any]], dict[str, CpuTrack]]:
    """Runs clients at once to their ends; returns results and the processor time of the watched.

    Raises:
        RuntimeError: One failed; with the end of its output.
    """
    tracks = {name: CpuTrack(process) for name, process in watched.items()}
    clients = [_start_client(processes, calls) for calls in each]
    deadline = time.monotonic() + _CLIENT_SECONDS
    while any(client.is_running() for client in clients):
        if time.monotonic() > deadline:
            raise RuntimeError(f"a client has not finished within {_CLIENT_SECONDS} s")
        time.sleep(_SAMPLE_SECONDS)
        for track in tracks.values():
            track.sample()
    return [client.result() for client in clients], tracks


def _start_client(processes: Processes, calls: Calls) -> Process:
    arguments = ["benchmarks.router.stream_client"]
    for name in ("target", "address", "requests", "concurrency", "connections", "max_tokens"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(calls, name))]
    arguments += ["--prompt", calls.prompt]
    return processes.start("client", arguments, core=cores().clients)
