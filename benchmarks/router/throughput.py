"""Processor time of a router for messages and requests, and the tokens that one core passes on."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.router.processes import Processes
from benchmarks.router.services import (
    Calls,
    Service,
    run_client,
    start_engine,
    start_router,
    start_smg,
)

_MIN_SHARE = 0.97
"""Of the tokens that the engine makes: what must arrive in time for a rate to hold."""
_MAX_MERGED = 0.01
"""Share of messages that may be missing because tokens came late and together."""
REQUESTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine makes and how clients take it.

    Attributes:
        target: `router`, `http` or `smg`.
        tokens_per_message: Of each request at each step of the engine.
        streams: Requests at once.
        connections: Of the client, which share the streams; over HTTP each needs its own.
        seconds: That the streams last.
    """

    target: str
    tokens_per_message: int
    streams: int = 256
    connections: int = 256
    seconds: float = 4.0

    def step_seconds(self, rate: int) -> float:
        """Returns the time from step to step at so many tokens per second."""
        return self.streams * self.tokens_per_message / rate

    def calls(self, router: Service, num_steps: int) -> Calls:
        """Returns the calls of all streams, of so many steps."""
        return Calls(
            target=self.target,
            address=router.address_for(self.target),
            requests=self.streams,
            concurrency=self.streams,
            connections=self.connections,
            max_tokens=num_steps * self.tokens_per_message,
        )


def measure_rates(
    processes: Processes, tokenizer: Path, load: Load, rates: Sequence[int]
) -> list[dict[str, Any]]:
    """Offers one rate of tokens per second after the other, up to the first that does not hold."""
    rows = []
    for rate in rates:
        with processes.scope() as inner:
            engine, router = _start(inner, tokenizer, load, rate)
            row = _offer(inner, load, rate, engine, router)
        rows.append(row)
        if not row["holds"]:
            break
    return rows


def measure_messages(
    processes: Processes, tokenizer: Path, loads: Sequence[Load], rate: int, rounds: int
) -> dict[str, Any]:
    """Returns each target's processor time for a message at one rate.

    They are measured in turn, so that what else happens on the machine meets all of them.
    """
    values: dict[str, list[float]] = {load.target: [] for load in loads}
    with processes.scope() as inner:
        started = [(load, *_start(inner, tokenizer, load, rate)) for load in loads]
        for _ in range(rounds):
            for load, engine, router in started:
                row = _offer(inner, load, rate, engine, router)
                if (cpu := row.get("router_cpu_us_per_message")) is not None:
                    values[load.target].append(cpu)
    return _summaries(values)


def measure_requests(
    processes: Processes, tokenizer: Path, targets: Sequence[str], requests: int, rounds: int
) -> dict[str, Any]:
    """Returns each target's processor time for a request of one token, 64 at once, in turn."""
    values: dict[str, list[float]] = {target: [] for target in targets}
    with processes.scope() as inner:
        started = []
        for target in targets:
            load = Load(
                target=target,
                tokens_per_message=1,
                streams=REQUESTS_AT_ONCE,
                connections=REQUESTS_AT_ONCE,
            )
            _, router = _start(inner, tokenizer, load, 100 * REQUESTS_AT_ONCE)
            started.append((router, replace(load.calls(router, 1), requests=requests)))
        for _ in range(rounds):
            for router, calls in started:
                before = router.process.cpu_seconds()
                run_client(inner, calls, {})
                cpu = router.process.cpu_seconds() - before
                values[calls.target].append(1e6 * cpu / requests)
    return _summaries(values)


def _summaries(values: dict[str, list[float]]) -> dict[str, Any]:
    return {
        target: {
            "median": round(statistics.median(row), 2) if row else None,
            "values": [round(value, 2) for value in row],
        }
        for target, row in values.items()
    }


def _start(processes: Processes, tokenizer: Path, load: Load, rate: int) -> tuple[Service, Service]:
    """Starts an engine of this rate and a router, and warms them up."""
    is_smg = load.target == "smg"
    engine = start_engine(
        processes,
        tokenizer,
        step_seconds=load.step_seconds(rate),
        module="smg_engine" if is_smg else "lean_engine",
        options=["--tokens-per-step", str(load.tokens_per_message)],
    )
    if is_smg:
        router = start_smg(processes, engine.address, tokenizer)
    else:
        router = start_router(processes, engine.address, with_http=load.target == "http")
    run_client(processes, load.calls(router, 2), {})
    return engine, router


def _offer(
    processes: Processes, load: Load, rate: int, engine: Service, router: Service
) -> dict[str, Any]:
    """Offers one rate; returns what arrived while all streams ran, and who worked how long for it.

    Processor seconds are those of the window in which all streams ran, so they hold no starts of
    requests.
    """
    count = load.tokens_per_message
    num_steps = max(2, round(load.seconds / load.step_seconds(rate)))
    watched = {"router": router.process, "engine": engine.process}
    result, tracks = run_client(processes, load.calls(router, num_steps), watched)
    window = result["steady"]
    start, end = window["start"], window["end"]
    seconds = end - start
    if seconds <= 0:
        return {"offered_tokens_per_s": rate, "holds": False, "why": "streams did not overlap"}
    num_tokens, num_messages = window["num_tokens"], window["num_messages"]
    cpu = tracks["router"].between(start, end)
    others = tracks["engine"].between(start, end) + (
        result["client_cpu_s"] * seconds / result["wall_s"]
    )
    arrived = num_tokens / seconds
    merged = 1 - num_messages * count / num_tokens
    return {
        "offered_tokens_per_s": rate,
        "tokens_per_s": round(arrived),
        "tokens_per_message": round(num_tokens / num_messages, 3),
        "holds": arrived >= _MIN_SHARE * rate and merged <= _MAX_MERGED,
        "router_core_share": round(cpu / seconds, 3),
        "engine_and_clients_core_share": round(others / seconds, 3),
        "router_cpu_ms_per_1000_tokens": round(1e6 * cpu / num_tokens, 2),
        "router_cpu_us_per_message": round(1e6 * cpu / num_messages, 2),
        "tokens_per_router_cpu_s": round(num_tokens / cpu),
    }
