"""Output tokens per second through one router process on one core."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine makes and how clients take it.

    Attributes:
        target: `router` or `smg`.
        tokens_per_message: Of each request at each step of the engine.
        streams: Requests at once.
        connections: Of the client, which share the streams.
        seconds: That the streams last.
    """

    target: str
    tokens_per_message: int
    streams: int = 256
    connections: int = 8
    seconds: float = 4.0


def measure_rates(
    processes: Processes, tokenizer: Path, load: Load, rates: Sequence[int]
) -> list[dict[str, Any]]:
    """Offers one rate of tokens per second after the other, up to the first that does not hold."""
    rows = []
    for rate in rates:
        row = measure_rate(processes, tokenizer, load, rate)
        rows.append(row)
        if not row["holds"]:
            break
    return rows


def measure_rate(processes: Processes, tokenizer: Path, load: Load, rate: int) -> dict[str, Any]:
    """Offers one rate; returns what arrived while all streams ran, and who worked how long for it.

    Processor seconds are those of the window in which all streams ran, so they hold no starts of
    requests.
    """
    count = load.tokens_per_message
    step_seconds = load.streams * count / rate
    with processes.scope() as inner:
        engine, router = _start(inner, tokenizer, load, step_seconds)
        watched = {"router": router.process, "engine": engine.process}
        num_steps = max(2, round(rate * load.seconds / load.streams / count))
        calls = Calls(
            target=load.target,
            address=router.address,
            requests=load.streams,
            concurrency=load.streams,
            connections=load.connections,
            max_tokens=num_steps * count,
        )
        run_client(inner, replace(calls, max_tokens=2 * count), {})  # warms up
        result, tracks = run_client(inner, calls, watched)
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


def measure_requests(
    processes: Processes, tokenizer: Path, load: Load, requests: int = 2000
) -> dict[str, Any]:
    """Returns the router's processor time for requests of one token, 64 at once."""
    with processes.scope() as inner:
        _, router = _start(inner, tokenizer, load, 0.01)
        calls = Calls(
            target=load.target,
            address=router.address,
            requests=requests,
            concurrency=64,
            connections=min(64, load.connections),
            max_tokens=1,
        )
        run_client(inner, calls, {})
        before = router.process.cpu_seconds()
        result, _ = run_client(inner, calls, {})
        cpu = router.process.cpu_seconds() - before
    return {
        "requests_per_s": round(requests / result["wall_s"]),
        "router_cpu_us_per_request": round(1e6 * cpu / requests),
    }


def _start(
    processes: Processes, tokenizer: Path, load: Load, step_seconds: float
) -> tuple[Service, Service]:
    is_smg = load.target == "smg"
    engine = start_engine(
        processes,
        tokenizer,
        step_seconds=step_seconds,
        tokens_per_step=load.tokens_per_message,
        for_smg=is_smg,
    )
    if is_smg:
        return engine, start_smg(processes, engine.address, tokenizer)
    return engine, start_router(processes, engine.address)
