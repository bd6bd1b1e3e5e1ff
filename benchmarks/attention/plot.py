"""Draws results: `python -m benchmarks.attention.plot RESULTS.json PICTURE.svg`.

Takes those of `benchmarks.prefill_attention`, `benchmarks.decode_attention` and, for its sweep,
`benchmarks.kernels`. Needs matplotlib.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Rows = list[dict[str, Any]]

# Okabe and Ito's colours, told apart by colour-blind readers too; markers tell them apart in grey.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7F7F7F")
_MARKERS = "os^Dv*"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of a benchmark's results."""
    plt.rcParams.update({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3})
    command = results["command"].split()[-1].rpartition(".")[2]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    {"prefill_attention": _prefill, "decode_attention": _decode, "kernels": _sweep}[command](
        results, axes
    )
    place = results.get("device") or results["gpu"]
    figure.suptitle(f"{place}, {results['dtype']}, commit {results['commit']}")
    figure.savefig(path)


def _prefill(results: Mapping[str, Any], axes: Iterable[Axes]) -> None:
    times, memory = axes
    for index, way in enumerate(_ways(results["rows"])):
        rows = [row for row in results["rows"] if row["way"] == way and "ms" in row]
        _line(times, rows, ("seq_len", "tflop_s"), way, index)
        if any(row["peak_mib"] is not None for row in rows):
            # Of one sequence: some run side by side.
            each = [{**row, "mib": row["peak_mib"] / row["num_seqs"]} for row in rows]
            _line(memory, each, ("seq_len", "mib"), way, index)
    _name(times, "tokens of a sequence", "TFLOP/s", "causal attention of prompts")
    times.axhline(
        results["limits"]["tflop_s"], color="black", linestyle=":", label="matrix product"
    )
    _name(memory, "tokens of a sequence", "MiB a sequence", "memory beside the inputs")
    times.legend()


def _decode(results: Mapping[str, Any], axes: Iterable[Axes]) -> None:
    for axis, num_seqs in zip(axes, (1, 64), strict=True):
        for index, way in enumerate(_ways(results["rows"])):
            rows = [row for row in results["rows"] if row["way"] == way and "ms" in row]
            rows = [row for row in rows if row["num_seqs"] == num_seqs]
            _line(axis, rows, ("seq_len", "tb_s"), way, index)
        axis.axhline(results["limits"]["tb_s"], color="black", linestyle=":", label="copy")
        _name(axis, "tokens of a sequence", "TB/s", f"decode, {num_seqs} at once")
        axis.legend()


def _sweep(results: Mapping[str, Any], axes: Iterable[Axes]) -> None:
    times, bandwidths = axes
    rows = [row for row in results["decode sweep"] if row["seq_len"] != "mixed"]
    mixed = [row for row in results["decode sweep"] if row["seq_len"] == "mixed"]
    for index, num_seqs in enumerate(dict.fromkeys(row["num_seqs"] for row in rows)):
        of_number = [row for row in rows if row["num_seqs"] == num_seqs]
        name = f"{num_seqs} at once"
        _line(times, of_number, ("seq_len", "us"), name, index)
        _line(bandwidths, of_number, ("num_tokens", "tb_s"), name, index)
    bandwidths.plot(
        [row["num_tokens"] for row in mixed], [row["tb_s"] for row in mixed], "kx", label="mixed"
    )
    _name(times, "tokens of each sequence", "microseconds", "decode attention, one layer")
    _name(bandwidths, "tokens of all sequences", "TB/s", "of keys and values")
    bandwidths.set_yscale("linear")
    bandwidths.legend()


def _ways(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["way"] for row in rows))


def _line(axis: Axes, rows: Rows, columns: tuple[str, str], name: str, index: int) -> None:
    x, y = ([row[column] for row in rows] for column in columns)
    axis.plot(
        x,
        y,
        color=_COLORS[index],
        marker=_MARKERS[index],
        label=name,
    )


def _name(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention.plot")
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.picture)


if __name__ == "__main__":
    main()
