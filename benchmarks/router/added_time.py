"""Time that a router adds to a request: through it, less straight to the engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.router.processes import Process, Processes
from benchmarks.router.services import (
    WAYS,
    Calls,
    run_client,
    start_engine,
    start_router,
    start_smg,
)

MAX_TOKENS = 16
_ROUNDS = 3
"""The ways are measured in turn, so that what else happens on the machine meets all of them."""
_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}

Samples = dict[str, list[float]]


def of_text(way: str) -> str:
    """Returns the row of requests with a text, through one of `WAYS`."""
    return f"{WAYS[way]}, prompt of text"


def quantile(values: list[float], share: float) -> float:
    """Returns the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(
    processes: Processes,
    tokenizer: Path,
    ways: Sequence[str],
    *,
    concurrency: int,
    requests: int,
) -> dict[str, Any]:
    """Returns milliseconds to the first token and in total of each way, and what it adds.

    Steps take longer the more requests share them, so that no core is busy all the time. `requests`
    are those of each way in each round.
    """
    step_seconds = 0.001 if concurrency == 1 else 0.02
    with processes.scope() as inner:
        engine = start_engine(inner, tokenizer, step_seconds=step_seconds)
        router = start_router(inner, engine.address, with_http=True)
        callers = {"engine": ("engine", engine.address, "tokens", 1)}
        if "router" in ways:
            callers["router, gRPC, prompt of tokens"] = ("router", router.address, "tokens", 1)
            callers[of_text("router")] = ("router", router.address, "text", 1)
        if "http" in ways:
            callers[of_text("http")] = ("http", router.http_address, "text", concurrency)
        if "smg" in ways:
            adapter = start_engine(inner, tokenizer, step_seconds=step_seconds, module="smg_engine")
            smg = start_smg(inner, adapter.address, tokenizer)
            callers[of_text("smg")] = ("smg", smg.address, "text", concurrency)
        samples: dict[str, dict[str, Samples]] = {}
        for number in range(_ROUNDS + 1):
            for name, (target, address, prompt, connections) in callers.items():
                calls = Calls(
                    target=target,
                    address=address,
                    requests=requests if number else concurrency,
                    concurrency=concurrency,
                    connections=connections,
                    max_tokens=MAX_TOKENS,
                    prompt=prompt,
                )
                result, _ = run_client(inner, calls, dict[str, Process]())
                if number:  # the first round warms up
                    _keep(samples.setdefault(name, {}), result)
    return {
        "concurrency": concurrency,
        "requests": requests * _ROUNDS,
        "tokens_per_request": MAX_TOKENS,
        "step_ms": step_seconds * 1e3,
        "ways": {name: _report(samples[name], samples["engine"]) for name in callers},
    }


def _keep(kept: dict[str, Any], result: dict[str, Any]) -> None:
    for key in ("first_token_s", "total_s"):
        kept.setdefault(key, []).extend(result[key])


def _report(way: dict[str, Any], direct: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for key, name in (("first_token_s", "first_token"), ("total_s", "total")):
        report[f"{name}_ms"] = {
            quantile_name: round(1e3 * quantile(way[key], share), 3)
            for quantile_name, share in _QUANTILES.items()
        }
        if way is not direct:
            report[f"added_to_{name}_ms"] = {
                quantile_name: round(
                    1e3 * (quantile(way[key], share) - quantile(direct[key], share)), 3
                )
                for quantile_name, share in _QUANTILES.items()
            }
    return report
