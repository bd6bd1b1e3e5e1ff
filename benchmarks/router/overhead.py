"""What the router costs, with engines that take no time of their own; no GPU, about eight minutes.

    python -m benchmarks.router.overhead --output benchmarks/results/router.json

Engines, routers and clients are separate processes. The router has a core of its own; all others
share another one. It is measured through both of its doors, gRPC and HTTP. With the packages of the
peer in the same environment (`pip install smg smg-grpc-proto`), Shepherd Model Gateway carries the
same load in the same run; without, its rows are left out. The same client code calls its HTTP door
and ours. For the memory that the documentation states, use an environment with nothing but `pip
install '.[router]'` (and the peer) in it. `--parts` and `--ways` choose what is measured, as for a
profile. `--quick` shows in half a minute that everything works; its figures mean nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit, cpus
from benchmarks.router import added_time, large_tokenizer, memory
from benchmarks.router.overhead_table import table
from benchmarks.router.processes import Processes, cores
from benchmarks.router.services import SMG_PACKAGES, WAYS, smg_is_installed
from benchmarks.router.throughput import (
    REQUESTS_AT_ONCE,
    Load,
    measure_messages,
    measure_rates,
    measure_requests,
)

_RATES = {
    1: (10_000, 20_000, 25_000, 30_000, 35_000, 40_000, 50_000),
    16: (50_000, 150_000, 250_000, 350_000, 450_000, 600_000),
}
"""Tokens per second offered, by tokens per message; up to the first that does not hold."""
_CONNECTIONS = {"router": 8, "http": 256, "smg": 256}
"""Of 256 streams. HTTP/1.1 needs one for each of them."""
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """What the parts have in common.

    Attributes:
        processes: Where they start theirs.
        tokenizer: Folder of the tokenizer of all services.
        ways: Those of `WAYS` to measure.
        quick: Whether to try the parts only.
    """

    processes: Processes
    tokenizer: Path
    ways: Sequence[str]
    quick: bool

    @property
    def rates(self) -> Mapping[int, Sequence[int]]:
        """Tokens per second to offer, by tokens per message."""
        return {1: (500,)} if self.quick else _RATES

    def load(self, target: str, tokens_per_message: int, connections: int) -> Load:
        """Returns 256 streams, or a few."""
        return Load(
            target=target,
            tokens_per_message=tokens_per_message,
            connections=connections,
            streams=8 if self.quick else 256,
            seconds=0.5 if self.quick else 4.0,
        )


def _machine() -> dict[str, Any]:
    return cpus() | {
        "cores": cores()._asdict(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
    }


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _added_time(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for concurrency, requests in ((1, 3), (4, 4)) if bench.quick else ((1, 150), (64, 640)):
        _tell(f"time added at concurrency {concurrency}")
        rows.append(
            added_time.measure(
                bench.processes,
                bench.tokenizer,
                bench.ways,
                concurrency=concurrency,
                requests=requests,
            )
        )
    return rows


def _throughput(bench: Bench) -> list[dict[str, Any]]:
    results = []
    for way in bench.ways:
        for count, rates in bench.rates.items():
            load = bench.load(way, count, _CONNECTIONS[way])
            _tell(f"{WAYS[way]}: {count} tokens a message, {load.connections} connections")
            rows = measure_rates(bench.processes, bench.tokenizer, load, rates)
            held = [row["tokens_per_s"] for row in rows if row["holds"]]
            results.append(
                {
                    "way": WAYS[way],
                    "tokens_per_message": count,
                    "streams": load.streams,
                    "connections": load.connections,
                    "highest_rate_held_tokens_per_s": max(held, default=None),
                    "best_tokens_per_router_cpu_s": max(
                        (row.get("tokens_per_router_cpu_s", 0) for row in rows), default=None
                    ),
                    "rates": rows,
                }
            )
    return results


def _messages(bench: Bench) -> list[dict[str, Any]]:
    """Measures all ways at the same rate and with as many connections."""
    results = []
    for count, (rate, *_) in bench.rates.items():
        _tell(f"messages of {count} tokens")
        loads = [bench.load(way, count, connections=256) for way in bench.ways]
        rounds = 1 if bench.quick else _ROUNDS
        cpu = measure_messages(bench.processes, bench.tokenizer, loads, rate, rounds)
        results.append(
            {
                "tokens_per_message": count,
                "offered_tokens_per_s": rate,
                "streams": loads[0].streams,
                "connections": loads[0].connections,
                "cpu_us_per_message": _named(cpu),
            }
        )
    return results


def _requests(bench: Bench) -> dict[str, Any]:
    _tell("requests of one token")
    requests, rounds = (100, 1) if bench.quick else (2000, _ROUNDS)
    cpu = measure_requests(bench.processes, bench.tokenizer, bench.ways, requests, rounds)
    return {"requests": requests, "at_once": REQUESTS_AT_ONCE, "cpu_us_per_request": _named(cpu)}


def _named(by_way: dict[str, Any]) -> dict[str, Any]:
    return {WAYS[way]: value for way, value in by_way.items()}


def _memory(bench: Bench) -> dict[str, Any]:
    return memory.measure(bench.processes, bench.tokenizer)


_PARTS: dict[str, Callable[[Bench], Any]] = {
    "added_time": _added_time,
    "throughput": _throughput,
    "messages": _messages,
    "requests": _requests,
    "memory": _memory,
}


def _ways(asked: Sequence[str] | None) -> list[str]:
    """Returns the ways to measure, which are all if the user does not say."""
    ways = list(dict.fromkeys(asked or WAYS))
    if "smg" not in ways or smg_is_installed():
        return ways
    hint = f"smg is not installed; {sys.executable} -m pip install {SMG_PACKAGES}"
    if asked:
        raise SystemExit(hint)
    _tell(f"{hint} includes it")
    return [way for way in ways if way != "smg"]


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
    parser.add_argument("--parts", nargs="+", choices=_PARTS, help="measure only these")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="measure only these")
    options = parser.parse_args()
    ways = _ways(options.ways)
    results: dict[str, Any] = {
        "command": "python -m benchmarks.router.overhead " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "smg": version("smg") if "smg" in ways else None,
    }
    everything = [name for name in _PARTS if name != "memory" or not options.quick]
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        tokenizer = large_tokenizer.save(Path(folder) / "tokenizer")
        bench = Bench(processes, tokenizer, ways, options.quick)
        for name in options.parts or everything:
            _tell(name)
            results[name] = _PARTS[name](bench)
            if options.output:
                _write(results, options.output)
    print(table(results, ways))
    if not options.output:
        print(json.dumps(results, indent=2))


def _write(results: dict[str, Any], path: Path) -> None:
    """Writes what there is so far, so that a part that fails takes none with it."""
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
