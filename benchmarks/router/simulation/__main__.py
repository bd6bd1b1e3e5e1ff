"""Judges placement without a GPU: `python -m benchmarks.router.simulation`.

Runs every policy on the same conversations and writes means with 95 % intervals as JSON and as
plots. `--quick` runs few seeds and prints only.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit
from benchmarks.router.simulation.cells import CELLS, Cell, claims, summary
from benchmarks.router.simulation.run import simulate

_ROOT = Path(__file__).resolve().parents[3]
_RESULTS = _ROOT / "benchmarks" / "results" / "router_simulation.json"
_DOCS = _ROOT / "docs"

# The weights of the cost were chosen on seeds from 0: results are of others.
_FIRST_SEED = 100
_NUM_SEEDS = 10
_QUICK_SEEDS = 3


def main() -> int:
    """Returns 0 when all that must hold does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router.simulation", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="simulate three seeds and 8 engines, write no files"
    )
    parser.add_argument(
        "--plots-only", action="store_true", help="draw the stored results, simulate nothing"
    )
    arguments = parser.parse_args()
    if arguments.plots_only:
        _draw(json.loads(_RESULTS.read_text()))
        return 0
    start = time.perf_counter()
    cells = [cell for cell in CELLS if not arguments.quick or cell.scenario.num_engines == 8]
    num_seeds = _QUICK_SEEDS if arguments.quick else _NUM_SEEDS
    summaries = [_run(cell, num_seeds) for cell in cells]
    results = {
        "command": "python -m benchmarks.router.simulation",
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one core",
        "seconds": round(time.perf_counter() - start),
        "seeds": num_seeds,
        "intervals": "95 %, Student's t; differences are by seed",
        "claims": claims(summaries),
        "cells": summaries,
    }
    for claim in results["claims"]:
        print(f"{'holds' if claim['holds'] else 'FAILS'}: {claim['claim']}")
    if not arguments.quick:
        _RESULTS.write_text(json.dumps(_rounded(results), indent=1) + "\n")
        _draw(results)
    return 0 if all(claim["holds"] for claim in results["claims"]) else 1


def _run(cell: Cell, num_seeds: int) -> dict[str, Any]:
    seeds = range(_FIRST_SEED, _FIRST_SEED + num_seeds)
    measures = {
        policy: [simulate(cell.scenario, policy, seed).measures for seed in seeds]
        for policy in cell.policies
    }
    found = summary(cell, measures)
    print(f"{cell.name}\n  policy        TTFT p50 p90 p99 ms   hits  tokens/s  ms/token  imbalance")
    for policy, of in found["policies"].items():
        ms = [1e3 * of[name]["mean"] for name in ("ttft_p50", "ttft_p90", "ttft_p99")]
        print(
            f"  {policy:12} {ms[0]:6.0f} {ms[1]:6.0f} {ms[2]:7.0f}"
            f" {of['hit_rate']['mean']:6.3f} {of['output_tokens_per_second']['mean']:9.0f}"
            f" {1e3 * of['seconds_per_output_token']['mean']:9.1f} {of['imbalance']['mean']:10.2f}",
            flush=True,
        )
    return found


def _rounded(value: Any) -> Any:  # noqa: ANN401
    """Returns the same with numbers of five digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _draw(results: dict[str, Any]) -> None:
    try:
        from benchmarks.router.simulation import plots
    except ModuleNotFoundError as error:
        print(
            f"no plots are drawn: {error}; run {sys.executable} -m pip install '.[benchmarks]'",
            file=sys.stderr,
        )
        return
    for path in plots.draw(results, _DOCS):
        print(f"drawn: {path.relative_to(_ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
