"""What a change costs the router: another checkout and this one, measured in turns.

    git worktree add ../before COMMIT
    python -m benchmarks.router.pairs --before ../before --output pairs.json

Routers of both checkouts stand before the same engine, which costs nothing, on the same core, and
get the same load one after the other. See `benchmarks.pairs` for the interval. About ten minutes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.provenance import commit, cpus
from benchmarks.router import large_tokenizer
from benchmarks.router.processes import ROOT, Processes
from benchmarks.router.services import Calls, Service, run_client, start_engine, start_router

_REQUESTS = 200
"""Of each kind of prompt in each turn."""
_PROMPTS = ("chat", "text", "tokens")
_STREAMS = 128
_STEP_SECONDS = 0.01
"""128 streams that get a token each 10 ms are 12,800 tokens/s, which either router holds."""
_NUM_STEPS = 200


def _first_token_ms(processes: Processes, router: Service, prompt: str) -> float:
    """Returns the median time to the first token of requests one after the other."""
    calls = Calls(
        target="router",
        address=router.address,
        requests=_REQUESTS,
        concurrency=1,
        connections=1,
        max_tokens=2,
        prompt=prompt,
    )
    result, _ = run_client(processes, calls, {})
    return 1e3 * statistics.median(result["first_token_s"])


def _tokens_per_cpu_second(processes: Processes, router: Service) -> float:
    """Returns the tokens that the router passes on a second of its processor's time."""
    calls = Calls(
        target="router",
        address=router.address,
        requests=_STREAMS,
        concurrency=_STREAMS,
        connections=8,
        max_tokens=_NUM_STEPS,
        prompt="tokens",
    )
    result, tracks = run_client(processes, calls, {"router": router.process})
    window = result["steady"]
    return float(window["num_tokens"] / tracks["router"].between(window["start"], window["end"]))


def _cpu_us_per_request(processes: Processes, router: Service) -> float:
    """Returns the router's processor time for a request of one token, 64 at once."""
    calls = Calls(
        target="router",
        address=router.address,
        requests=2000,
        concurrency=64,
        connections=64,
        max_tokens=1,
    )
    before = router.process.cpu_seconds()
    run_client(processes, calls, {})
    return 1e6 * (router.process.cpu_seconds() - before) / calls.requests


def _measure_all(
    processes: Processes, tokenizer: Path, roots: dict[str, Path], num_pairs: int
) -> dict[str, Any]:
    results: dict[str, Any] = {}

    def compare(name: str, measure: Callable[[Service], float]) -> None:
        row = results[name] = pairs.measure(lambda side: measure(routers[side]), num_pairs)
        summary = {key: value for key, value in row.items() if key != "values"}
        print(name, json.dumps(summary), file=sys.stderr, flush=True)

    for step_seconds in (0.001, _STEP_SECONDS):
        with processes.scope() as inner:
            engine = start_engine(inner, tokenizer, step_seconds=step_seconds)
            routers = {
                name: start_router(inner, engine.address, root) for name, root in roots.items()
            }
            if step_seconds == _STEP_SECONDS:
                compare("tokens_per_router_cpu_s", lambda r: _tokens_per_cpu_second(inner, r))
                compare("router_cpu_us_per_request", lambda r: _cpu_us_per_request(inner, r))
                continue
            for prompt in _PROMPTS:
                compare(
                    f"first_token_ms_{prompt}",
                    lambda router, prompt=prompt: _first_token_ms(inner, router, prompt),
                )
    return results


def main() -> None:
    """Measures both checkouts and writes one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--output", type=Path, help="a JSON file; without it, to the output")
    options = parser.parse_args()
    roots = {pairs.BEFORE: options.before.resolve(), pairs.AFTER: ROOT}
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        tokenizer = large_tokenizer.save(Path(folder) / "tokenizer")
        figures = _measure_all(processes, tokenizer, roots, options.pairs)
    results = {
        "command": "python -m benchmarks.router.pairs " + " ".join(sys.argv[1:]),
        "commit_before": commit(roots[pairs.BEFORE]),
        "commit_after": commit(roots[pairs.AFTER]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": cpus() | {"grpcio": version("grpcio"), "protobuf": version("protobuf")},
        "pairs": options.pairs,
        "requests_per_turn": _REQUESTS,
        "figures": figures,
    }
    text = json.dumps(results, indent=2) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
