"""An engine behind its router, as clients meet them: `python -m benchmarks.serving`.

Starts both services with random weights of the shape of a Qwen3 model and a vocabulary of full
size, without prefix caching. Clients in processes of their own send `nano_bench` as 256 streams at
once, then single requests of 128 tokens, one after the other; prompts are tokens, answers are text.
The router's doors, gRPC and HTTP, are measured in turn. Prints a table of the medians. `--quick`
shows with a tiny model that everything works, also without a GPU; its figures mean nothing.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.engine import machine
from benchmarks.provenance import commit
from benchmarks.router import large_tokenizer
from benchmarks.router.processes import HOST, Process, Processes, cores
from benchmarks.router.services import Service, answers, start_router
from benchmarks.serving_client import DOORS, READY
from benchmarks.shapes import SHAPES
from tests.fakes.service_process import free_ports

_CLIENTS = 4
"""Processes that share the streams."""
_STREAMS = 256
_READY_SECONDS = 180.0
"""For an engine that compiles its kernels first."""
_RUN_SECONDS = 120.0
_QUICK = ("--max-model-len", "1024", "--num-blocks", "64", "--cpu-threads", "1")
"""Of an engine that only tries the benchmark."""


def _start_engine(processes: Processes, folder: Path, options: argparse.Namespace) -> Service:
    """Starts an engine; its checkpoint is a configuration and a tokenizer."""
    large_tokenizer.save(folder)
    shape = SHAPES[options.model] | {"vocab_size": large_tokenizer.VOCAB_SIZE}
    (folder / "config.json").write_text(json.dumps(shape))
    port, operations_port = free_ports(2)
    arguments = ["engine_service", "--model", str(folder), "--load-format", "dummy"]
    arguments += ["--no-enable-prefix-caching", "--port", str(port)]
    arguments += ["--operations-port", str(operations_port), *(_QUICK if options.quick else ())]
    process = processes.start("engine", arguments, core=cores().engines)
    process.wait_until(lambda: answers(f"{HOST}:{operations_port}", "/readyz"), _READY_SECONDS)
    return Service(process=process, address=f"{HOST}:{port}")


def _call(
    processes: Processes, router: Service, door: str, workload: str, num_clients: int
) -> dict[str, Any]:
    """Lets clients call at once, each one request or its share of the streams at a time."""
    concurrency = 1 if workload.endswith("single") else _STREAMS // num_clients
    address = router.http_address if door == "HTTP" else router.address
    with tempfile.TemporaryDirectory() as folder, processes.scope() as inner:
        go = Path(folder) / "go"
        arguments = ["benchmarks.serving_client", "--door", door, "--address", address]
        arguments += ["--workload", workload, "--concurrency", str(concurrency), "--go", str(go)]
        clients = [
            inner.start(
                "client", [*arguments, "--share", f"{index}/{num_clients}"], core=cores().clients
            )
            for index in range(num_clients)
        ]
        for client in clients:
            client.wait_until(partial(_is_ready, client))
        cpu = router.process.cpu_seconds()
        go.touch()
        results = [client.result(_RUN_SECONDS) for client in clients]
        cpu = router.process.cpu_seconds() - cpu
    seconds = max(row["ended"] for row in results) - min(row["started"] for row in results)
    first_tokens = [value for row in results for value in row["first_token_s"]]
    return {
        "tokens_per_s": round(sum(row["num_tokens"] for row in results) / seconds),
        "first_token_ms": round(1e3 * statistics.median(first_tokens), 2),
        "messages": sum(row["num_messages"] for row in results),
        "router_core_share": round(cpu / seconds, 3),
    }


def _is_ready(client: Process) -> bool:
    return client.log.read_text().startswith(READY)


def measure(processes: Processes, router: Service, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the runs of each door by workload, after one that warms up."""
    prefix = "quick_" if options.quick else ""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        door: {"streams": [], "single": []} for door in DOORS
    }
    for number in range(options.repeats + 1):
        for door, by_workload in runs.items():
            for workload, rows in by_workload.items():
                is_single = workload == "single"
                name = f"{prefix}{workload}" if number else "quick_streams"
                row = _call(processes, router, door, name, 1 if is_single else _CLIENTS)
                if number:
                    rows.append(row)
                    print(f"{door}, {workload}: {row}", file=sys.stderr, flush=True)
    return runs


def table(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Returns a row of medians for each door, with ratios to the first one."""
    lines = ["|  | tokens/s, streams | ms to the first token, single |", "| --- | --- | --- |"]
    firsts: list[float] = []
    for door, by_workload in runs.items():
        figures = [
            round(statistics.median(row[key] for row in by_workload[workload]), 2)
            for workload, key in (("streams", "tokens_per_s"), ("single", "first_token_ms"))
        ]
        firsts = firsts or figures
        cells = [
            f"{value:,} ({value / first:.2f})" for value, first in zip(figures, firsts, strict=True)
        ]
        lines.append(f"| {' | '.join([door, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures as the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each door (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and few requests, to try it"
    )
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    if options.quick:
        options.model = "tiny"
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder), pins=False) as processes:
        engine = _start_engine(processes, Path(folder) / options.model, options)
        router = start_router(processes, engine.address, with_http=True)
        runs = measure(processes, router, options)
    print(table(runs))
    if options.output:
        results = {
            "command": shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]]),
            "commit": options.commit,
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "model": options.model,
            "clients": _CLIENTS,
            "runs": runs,
        }
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
