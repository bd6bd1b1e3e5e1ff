"""What a change costs the engine: another checkout and this one, measured in turns on one GPU.

    git worktree add ../before COMMIT
    python -m benchmarks.engine_pairs --before ../before --output pairs.json

Each turn is a process of `benchmarks.engine`, with random weights. See `benchmarks.pairs` for the
interval. A pair with the workloads below takes about a minute.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engine import machine
from benchmarks.pairs import AFTER, BEFORE, summary, turns
from benchmarks.provenance import commit
from benchmarks.shapes import SHAPES
from benchmarks.workloads import WORKLOADS

_ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 300.0


def _measure(root: Path, shape: str, workloads: list[str]) -> dict[str, float]:
    """Returns tokens per second by workload, best of two runs, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "engine.json"
        command = [sys.executable, "-m", "benchmarks.engine", "--models", shape]
        command += ["--workloads", *workloads, "--repeats", "2", "--output", str(output)]
        subprocess.run(command, cwd=root, check=True, timeout=_SECONDS, stdout=sys.stderr)
        details: dict[str, Any] = json.loads(output.read_text())["details"][shape]
    return {name: float(details[name]["best"]) for name in workloads}


def main() -> None:
    """Measures both checkouts, writing what there is after each pair."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine_pairs",
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
        "--seconds",
        type=float,
        default=3600,
        help="start no further pair after this time (default: %(default)s)",
    )
    parser.add_argument("--model", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=["nano_bench", "decode_b1"]
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    options = parser.parse_args()
    roots = {BEFORE: options.before.resolve(), AFTER: _ROOT}
    started = time.monotonic()
    values: dict[str, dict[str, list[float]]] = {
        name: {BEFORE: [], AFTER: []} for name in options.workloads
    }
    for number, side in enumerate(turns(options.pairs)):
        if number % 2 == 0 and time.monotonic() - started > options.seconds:
            break
        for name, value in _measure(roots[side], options.model, options.workloads).items():
            values[name][side].append(value)
        if number % 2 == 0:
            continue
        results = {
            "command": "python -m benchmarks.engine_pairs " + " ".join(sys.argv[1:]),
            "commit_before": options.before_commit or commit(roots[BEFORE]),
            "commit_after": options.commit,
            "machine": machine(),
            "model": options.model,
            "unit": "tokens per second",
            "figures": {name: summary(rows) for name, rows in values.items()},
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for name, rows in values.items():
        row = summary(rows)
        print(name, json.dumps({key: row[key] for key in row if key != "values"}))


if __name__ == "__main__":
    main()
