"""One GPU against two that share a model: `python -m benchmarks.tensor_parallel`.

Each model and number of ranks has a process of `benchmarks.engine`, with random weights, and before
it one that only starts, so that the kernels are compiled. Writes what there is after each, and
prints the figures beside what is known of two H200: vLLM's figure, what two ranks must reach, what
they should reach, and the limit. With `--models tiny --quick` it needs no GPU, to try the command.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import SECONDS_TO_READY_OF_TWO, TOKENS_PER_SECOND_OF_TWO
from benchmarks.provenance import commit
from benchmarks.shapes import SHAPES
from benchmarks.workloads import WORKLOADS

_ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 1800.0
_WORKLOADS = ("decode_b1", "decode_b64", "nano_bench", "prefill")
_READY = "seconds_to_ready"
_VLLM = "vLLM 0.24.0 (FA3)"

BARS = {
    "qwen3-8b": {
        "decode_b1": 300,
        "decode_b64": 7_000,
        "nano_bench": 15_500,
        "prefill": 72_000,
        _READY: 25,
    },
    "qwen3-32b": {"decode_b1": 98, "decode_b64": 2_400, "nano_bench": 5_300, "prefill": 18_000},
}
"""What two ranks must reach on two H200."""
GOALS = {
    "qwen3-8b": {
        "decode_b1": 370,
        "decode_b64": 8_700,
        "nano_bench": 19_000,
        "prefill": 82_000,
        _READY: 12,
    },
    "qwen3-32b": {"decode_b1": 110, "decode_b64": 2_650, "nano_bench": 6_000, "prefill": 19_500},
}
"""What they should reach."""

Figures = dict[str, float]
"""By workload, tokens per second; and the seconds until the model was ready."""


def _measure(model: str, num_ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the report of `benchmarks.engine` on one model, measured in its last process."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "engine.json"
        command = [sys.executable, "-m", "benchmarks.engine", "--models", model]
        command += ["--tensor-parallel-size", str(num_ranks), "--output", str(output)]
        command += ["--repeats", str(options.repeats), *(["--quick"] if options.quick else [])]
        starts = [["--workloads"]] * (options.starts - 1)
        for workloads in (*starts, ["--workloads", *options.workloads]):
            try:
                subprocess.run([*command, *workloads], cwd=_ROOT, check=True, timeout=_SECONDS)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise SystemExit(
                    f"{model} with {num_ranks} ranks failed, see above: {error}"
                ) from None
        report: dict[str, Any] = json.loads(output.read_text())
    return report


def _figures(details: dict[str, Any]) -> Figures:
    rates = {name: details[name]["best"] for name in _WORKLOADS if name in details}
    return rates | {_READY: details[_READY]}


def table(figures: dict[str, dict[int, Figures]]) -> str:
    """Returns the figures of all models and numbers of ranks as a table.

    Those of two ranks are compared with what is known: a word says whether it is reached.
    """
    counts = sorted({count for by_count in figures.values() for count in by_count})
    first, last = counts[0], counts[-1]
    heads = ["tokens/s", *(f"N = {count}" for count in counts), f"N = {last} over {first}"]
    heads += ["vLLM 0.24.0", "bar", "goal", "limit"]
    rows = [heads, ["---"] * len(heads)]
    for model, by_count in figures.items():
        for name in dict.fromkeys(name for found in by_count.values() for name in found):
            ours = {count: found[name] for count, found in by_count.items() if name in found}
            is_whole = first in ours and last in ours
            rows.append(
                [
                    f"{model} {name}",
                    *(_shown(ours.get(count)) for count in counts),
                    f"{ours[last] / ours[first]:.2f}" if is_whole else "",
                    *(_compared(ours.get(2), known, name) for known in _known(model, name)),
                    _shown(TOKENS_PER_SECOND_OF_TWO.get(model, {}).get("limit", {}).get(name)),
                ]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _known(model: str, name: str) -> tuple[float | None, float | None, float | None]:
    """Returns vLLM's figure of two ranks, the bar and the goal, as far as there are any."""
    vllm = TOKENS_PER_SECOND_OF_TWO.get(model, {}).get(_VLLM, {}).get(name)
    if name == _READY:
        vllm = SECONDS_TO_READY_OF_TWO.get(model, {}).get(_VLLM)
    return vllm, BARS.get(model, {}).get(name), GOALS.get(model, {}).get(name)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _compared(ours: float | None, known: float | None, name: str) -> str:
    if ours is None or known is None:
        return _shown(known)
    is_reached = ours <= known if name == _READY else ours >= known
    return f"{_shown(known)} ({'yes' if is_reached else 'no'})"


def main() -> None:
    """Measures as the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tensor_parallel", description=__doc__
    )
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(BARS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=list(_WORKLOADS))
    parser.add_argument("--repeats", type=int, default=2, help="runs per workload (default: 2)")
    parser.add_argument(
        "--starts", type=int, default=2, help="processes each, the last measures (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="small workloads, to try it")
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    figures: dict[str, dict[int, Figures]] = {model: {} for model in options.models}
    details: dict[str, dict[int, Any]] = {model: {} for model in options.models}
    results = {
        "command": shlex.join(["python", "-m", "benchmarks.tensor_parallel", *sys.argv[1:]]),
        "commit": options.commit,
        "machine": "",
        "how": "figures by model and number of ranks: output tokens per second, of prefill input "
        f"tokens; the best of {options.repeats} runs in the last of {options.starts} processes, "
        "and the seconds which that took to be ready; random weights; in-process, no server",
        "figures": figures,
        "details": details,
    }
    for num_ranks in sorted(options.ranks):
        for model in options.models:
            report = _measure(model, num_ranks, options)
            results["machine"] = report["machine"]
            details[model][num_ranks] = report["details"][model]
            figures[model][num_ranks] = _figures(details[model][num_ranks])
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{results['machine']}\n\n{table(figures)}")


if __name__ == "__main__":
    main()
