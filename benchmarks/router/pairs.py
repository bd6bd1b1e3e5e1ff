"""What a change costs the router: another checkout and this one, measured side by side.

    git worktree add ../before COMMIT
    python -m benchmarks.router.pairs --before ../before --output pairs.json

The routers of both checkouts run on the same core, in front of the same engine, which takes no time
of its own. Times to the first token are measured with requests to both in turns, everything else
under load on both at once. HTTP is measured as well if both have it. See `benchmarks.pairs` for the
interval. Takes about five minutes.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.provenance import commit, cpus
from benchmarks.router import large_tokenizer
from benchmarks.router.processes import ROOT, Processes, cores
from benchmarks.router.services import Calls, Service, run_clients, start_engine, start_router
from benchmarks.router.stream_client import Target

_REQUESTS = 200
"""Of each kind of prompt, to each router, in each pair."""
_PROMPTS = {"router": ("chat", "text", "tokens"), "http": ("text",)}
"""Of each target, see `stream_client`."""
_CONNECTIONS = {"router": 8, "http": 64}
_STREAMS = 64
"""To each router."""
_STEP_SECONDS = 0.01
"""128 streams that get a token each 10 ms are 12,800 tokens/s, which the two hold on one core."""
_NUM_STEPS = 200
_SHORT_REQUESTS = 1000
"""To each router in each pair."""


def _first_tokens_ms(
    routers: dict[str, Service], target_name: str, prompt: str, num_pairs: int
) -> dict[str, list[float]]:
    """Returns for each router and pair the median time to the first token, in milliseconds.

    The routers get their requests in turns, one after the other, so that both of a pair meet the
    same moments of the machine.
    """
    target = Target(target_name, prompt, num_prompt_tokens=128, max_tokens=2)
    values: dict[str, list[float]] = {name: [] for name in routers}
    rng = random.Random(0)
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores().clients})
    connections = {
        name: target.connect(router.address_for(target_name)) for name, router in routers.items()
    }
    try:
        for _ in range(num_pairs + 1):
            seconds: dict[str, list[float]] = {name: [] for name in routers}
            for _ in range(_REQUESTS):
                for name in rng.sample(sorted(routers), k=len(routers)):
                    call = connections[name].call(target.body(rng))
                    while not connections[name].receive():
                        pass
                    seconds[name].append(target.read(call).first_token)
            for name, row in seconds.items():
                values[name].append(1e3 * statistics.median(row))
    finally:
        os.sched_setaffinity(0, own)
        for connection in connections.values():
            connection.socket.close()
    return _without_warm_up(values)


def _without_warm_up(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: row[1:] for name, row in values.items()}


def _tokens_per_cpu_second(
    processes: Processes, routers: dict[str, Service], target: str, num_pairs: int
) -> dict[str, list[float]]:
    """Returns for each router and pair the tokens it passes on in a second of its processor's time.

    Both stream at once, so that both meet the same moments of the core that they share.
    """
    each = [
        Calls(
            target=target,
            address=router.address_for(target),
            requests=_STREAMS,
            concurrency=_STREAMS,
            connections=_CONNECTIONS[target],
            max_tokens=_NUM_STEPS,
            prompt="tokens",
        )
        for router in routers.values()
    ]
    watched = {name: router.process for name, router in routers.items()}
    values: dict[str, list[float]] = {name: [] for name in routers}
    for _ in range(num_pairs + 1):
        results, tracks = run_clients(processes, each, watched)
        for name, result in zip(routers, results, strict=True):
            window = result["steady"]
            seconds = tracks[name].between(window["start"], window["end"])
            values[name].append(window["num_tokens"] / seconds)
    return _without_warm_up(values)


def _cpu_us_per_request(
    processes: Processes, routers: dict[str, Service], target: str, num_pairs: int
) -> dict[str, list[float]]:
    """Returns for each router and pair its processor time for a request of one token.

    Both get them at once, 32 at a time.
    """
    each = [
        Calls(
            target=target,
            address=router.address_for(target),
            requests=_SHORT_REQUESTS,
            concurrency=32,
            connections=32,
            max_tokens=1,
        )
        for router in routers.values()
    ]
    values: dict[str, list[float]] = {name: [] for name in routers}
    for _ in range(num_pairs + 1):
        before = {name: router.process.cpu_seconds() for name, router in routers.items()}
        run_clients(processes, each, {})
        for name, router in routers.items():
            seconds = router.process.cpu_seconds() - before[name]
            values[name].append(1e6 * seconds / _SHORT_REQUESTS)
    return _without_warm_up(values)


def _measure_all(
    processes: Processes, tokenizer: Path, roots: dict[str, Path], num_pairs: int
) -> dict[str, Any]:
    results: dict[str, Any] = {}

    def note(name: str, values: dict[str, list[float]]) -> None:
        row = results[name] = pairs.summary(values)
        summary = {key: value for key, value in row.items() if key != "values"}
        print(name, json.dumps(summary), file=sys.stderr, flush=True)

    targets = ["router", "http"] if all(map(_has_http, roots.values())) else ["router"]
    for step_seconds in (0.001, _STEP_SECONDS):
        with processes.scope() as inner:
            engine = start_engine(inner, tokenizer, step_seconds=step_seconds)
            routers = {
                name: start_router(inner, engine.address, root, with_http="http" in targets)
                for name, root in roots.items()
            }
            for target in targets:
                prefix = "http_" if target == "http" else ""
                if step_seconds == _STEP_SECONDS:
                    values = _tokens_per_cpu_second(inner, routers, target, num_pairs)
                    note(f"{prefix}tokens_per_router_cpu_s", values)
                    values = _cpu_us_per_request(inner, routers, target, num_pairs)
                    note(f"{prefix}router_cpu_us_per_request", values)
                    continue
                for prompt in _PROMPTS[target]:
                    values = _first_tokens_ms(routers, target, prompt, num_pairs)
                    note(f"{prefix}first_token_ms_{prompt}", values)
    return results


def _has_http(root: Path) -> bool:
    """Returns whether the router of a checkout has an HTTP door."""
    command = [sys.executable, "-m", "router", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return "--http-port" in done.stdout


def main() -> None:
    """Measures both checkouts and writes one JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--before", type=Path, required=True, help="folder of the checkout to compare with"
    )
    parser.add_argument("--before-commit", help="commit of that checkout, if it has no git folder")
    parser.add_argument("--commit", default=commit(), help="commit of this checkout")
    parser.add_argument("--pairs", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results (default: standard output)"
    )
    options = parser.parse_args()
    roots = {pairs.BEFORE: options.before.resolve(), pairs.AFTER: ROOT}
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        tokenizer = large_tokenizer.save(Path(folder) / "tokenizer")
        figures = _measure_all(processes, tokenizer, roots, options.pairs)
    results = {
        "command": "python -m benchmarks.router.pairs " + " ".join(sys.argv[1:]),
        "commit_before": options.before_commit or commit(roots[pairs.BEFORE]),
        "commit_after": options.commit,
        "date": time.strftime("%Y-%m-%d"),
        "machine": cpus() | {"grpcio": version("grpcio"), "protobuf": version("protobuf")},
        "pairs": options.pairs,
        "requests_per_pair": _REQUESTS,
        "cores": cores()._asdict(),
        "figures": figures,
    }
    text = json.dumps(results, indent=2) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
