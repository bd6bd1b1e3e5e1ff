"""Draws the results of the simulation; the only file that needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, told apart by colour-blind readers too; markers tell them apart in grey.
_STYLES = {
    "prefix": ("#0072B2", "o"),
    "thresholds": ("#D55E00", "s"),
    "least_loaded": ("#009E73", "^"),
    "round_robin": ("#CC79A7", "D"),
    "random": ("#7F7F7F", "v"),
}
_CAPTION = "Simulated Qwen3-8B engines on H200s; mean of {} seeds with 95 % intervals"
_TITLES = {"chat": "shared prefixes (chat)", "unique": "nothing shared (unique)"}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the plots into a folder; returns their paths."""
    plt.rcParams.update({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120})
    bars, lines = folder / "placement.png", folder / "placement_load.png"
    _draw_bars(results["cells"], bars, results["seeds"])
    _draw_lines(results["cells"], lines, results["seeds"])
    return [bars, lines]


def _draw_bars(cells: list[Mapping[str, Any]], path: Path, num_seeds: int) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for row, engines in zip(axes, (8, 64), strict=True):
        for plot, workload in zip(row, _TITLES, strict=True):
            found = {
                cell["load"]: cell["policies"]
                for cell in cells
                if cell["workload"] == workload and cell["engines"] == engines
            }
            for place, (policy, (color, _)) in enumerate(_STYLES.items()):
                gaps = [found[load][policy]["ttft_p90"] for load in ("low", "high")]
                plot.bar(
                    [place * 0.16 - 0.32, place * 0.16 + 0.68],
                    [1e3 * gap["mean"] for gap in gaps],
                    width=0.15,
                    yerr=[1e3 * gap["half_width"] for gap in gaps],
                    color=color,
                    label=policy,
                    capsize=3,
                    error_kw={"elinewidth": 1.2},
                )
            plot.set_xticks([0, 1], ["low load", "high load"])
            plot.grid(visible=False, axis="x")
            plot.set_title(f"{_TITLES[workload]}, {engines} engines")
            plot.set_ylabel("time to first token, p90 (ms)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(_CAPTION.format(num_seeds))
    figure.savefig(path)
    plt.close(figure)


def _draw_lines(cells: list[Mapping[str, Any]], path: Path, num_seeds: int) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for plot, workload in zip(axes, _TITLES, strict=True):
        found = sorted(
            (cell for cell in cells if cell["workload"] == workload and cell["engines"] == 8),
            key=lambda cell: cell["offered_requests_per_second_and_engine"],
        )
        for policy, (color, marker) in _STYLES.items():
            gaps = [cell["policies"][policy]["ttft_p90"] for cell in found]
            plot.errorbar(
                [cell["offered_requests_per_second_and_engine"] for cell in found],
                [1e3 * gap["mean"] for gap in gaps],
                yerr=[1e3 * gap["half_width"] for gap in gaps],
                color=color,
                marker=marker,
                markersize=5,
                capsize=3,
                label=policy,
            )
        plot.set_yscale("log")
        plot.set_title(f"{_TITLES[workload]}, 8 engines")
        plot.set_xlabel("offered requests per second and engine")
        plot.set_ylabel("time to first token, p90 (ms, log)")
        plot.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        plot.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        plot.set_yticks([50, 100, 200, 400, 800])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(_CAPTION.format(num_seeds))
    figure.savefig(path)
    plt.close(figure)
