"""What the router costs, with engines that take no time of their own; no GPU, about six minutes.

    python -m benchmarks.router.overhead --output benchmarks/results/router.json

Engines, routers and clients are separate processes. The router has a core of its own; all others
share another one. With the packages of the peer in the same environment (`pip install smg
smg-grpc-proto`), Shepherd Model Gateway carries the same load in the same run; without, its rows
are left out. For the memory that the documentation states, use an environment with nothing but
`pip install '.[router]'` (and the peer) in it. `--quick` shows in half a minute that everything
works; its figures mean nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.provenance import commit, cpus
from benchmarks.router import added_time, large_tokenizer, memory
from benchmarks.router.processes import Processes, cores
from benchmarks.router.services import SMG_PACKAGES, smg_is_installed
from benchmarks.router.throughput import Load, measure_rates, measure_requests

if TYPE_CHECKING:
    from collections.abc import Callable

_RATES = {
    1: (10_000, 20_000, 25_000, 30_000, 35_000, 40_000, 50_000),
    16: (50_000, 150_000, 250_000, 350_000, 450_000, 600_000),
}
"""Tokens per second offered, by tokens per message; up to the first that does not hold."""
_RATES_OF_MANY_CONNECTIONS = {1: (10_000, 25_000), 16: (50_000, 150_000)}


_PARTS = ("added_time", "throughput", "requests_of_one_token", "placement_and_memory")


def _machine() -> dict[str, Any]:
    return cpus() | {
        "cores": cores()._asdict(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
    }


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _added_time(processes: Processes, tokenizer: Path, *, with_smg: bool, quick: bool) -> list[Any]:
    rows = []
    for concurrency, requests in ((1, 3), (4, 4)) if quick else ((1, 150), (64, 640)):
        _tell(f"time added at concurrency {concurrency}")
        rows.append(
            added_time.measure(
                processes,
                tokenizer,
                concurrency=concurrency,
                requests=requests,
                with_smg=with_smg,
            )
        )
    return rows


def _throughput(
    processes: Processes, tokenizer: Path, *, with_smg: bool, quick: bool
) -> list[dict[str, Any]]:
    # The peer's clients speak HTTP/1.1, which needs a connection for each stream.
    ways: list[tuple[str, int, dict[int, tuple[int, ...]]]] = [
        ("router", 8, _RATES),
        ("router", 256, _RATES_OF_MANY_CONNECTIONS),
    ]
    if with_smg:
        ways.append(("smg", 256, _RATES))
    results = []
    for target, connections, rates_of in ways:
        for count, rates in rates_of.items():
            _tell(f"{target}: {count} tokens a message, {connections} connections")
            load = Load(
                target=target,
                tokens_per_message=count,
                connections=connections,
                streams=8 if quick else 256,
                seconds=0.5 if quick else 4.0,
            )
            rows = measure_rates(processes, tokenizer, load, (500,) if quick else rates)
            held = [row["tokens_per_s"] for row in rows if row["holds"]]
            results.append(
                {
                    "target": target,
                    "tokens_per_message": count,
                    "streams": load.streams,
                    "connections": connections,
                    "highest_rate_held_tokens_per_s": max(held, default=None),
                    "best_tokens_per_router_cpu_s": max(
                        (row.get("tokens_per_router_cpu_s", 0) for row in rows), default=None
                    ),
                    "rates": rows,
                }
            )
    return results


def _requests(
    processes: Processes, tokenizer: Path, *, with_smg: bool, quick: bool
) -> dict[str, Any]:
    results = {}
    for target in ("router", "smg") if with_smg else ("router",):
        _tell(f"{target}: requests of one token")
        load = Load(target=target, tokens_per_message=1, connections=64)
        results[target] = measure_requests(processes, tokenizer, load, 100 if quick else 2000)
    return results


def main() -> None:
    """Measures everything and writes one JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results (default: standard output)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only show that everything works, in half a minute"
    )
    parser.add_argument("--only", nargs="+", choices=_PARTS, help="run only these parts")
    parser.add_argument("--without-smg", action="store_true", help="do not measure smg")
    options = parser.parse_args()
    with_smg = not options.without_smg and smg_is_installed()
    if not with_smg and not options.without_smg:
        _tell(
            "smg is not installed and is not measured; to include it, run "
            f"{sys.executable} -m pip install {SMG_PACKAGES}"
        )
    results: dict[str, Any] = {
        "command": "python -m benchmarks.router.overhead " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "smg": version("smg") if with_smg else None,
    }
    common: dict[str, Any] = {"with_smg": with_smg, "quick": options.quick}
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        tokenizer = large_tokenizer.save(Path(folder) / "tokenizer")
        parts: dict[str, Callable[[], Any]] = {
            "added_time": lambda: _added_time(processes, tokenizer, **common),
            "throughput": lambda: _throughput(processes, tokenizer, **common),
            "requests_of_one_token": lambda: _requests(processes, tokenizer, **common),
            "placement_and_memory": lambda: memory.measure(processes, tokenizer),
        }
        for name in options.only or _PARTS[: 3 if options.quick else 4]:
            _tell(name)
            results[name] = parts[name]()
            if options.output:
                _write(results, options.output)
    if not options.output:
        print(json.dumps(results, indent=2))


def _write(results: dict[str, Any], path: Path) -> None:
    """Writes what there is so far, so that a part that fails takes none with it."""
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
