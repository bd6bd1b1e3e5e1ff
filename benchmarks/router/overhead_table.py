"""The table of what each way through a router costs, beside the peer of the same run."""

from collections.abc import Sequence
from typing import Any

from benchmarks.router.added_time import of_text
from benchmarks.router.services import WAYS

_PEER = "smg"


def table(results: dict[str, Any], ways: Sequence[str]) -> str:
    """Returns a row for each way, of the parts that were measured, with ratios to the peer.

    Times to the first token are those that the way adds to requests with a text.
    """
    columns = _columns(results)
    lines = [
        f"| {' | '.join(['', *columns])} |",
        f"| {' | '.join('---' for _ in range(len(columns) + 1))} |",
    ]
    for way in ways:
        cells = [_cell(column.get(way), column.get(_PEER)) for column in columns.values()]
        lines.append(f"| {' | '.join([WAYS[way], *cells])} |")
    return "\n".join(lines)


def _columns(results: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Returns the figure of each way by the title of its column."""
    columns: dict[str, dict[str, float | None]] = {}
    for row in results.get("added_time", ()):
        title = f"ms to the first token, {row['concurrency']} at once"
        columns[title] = {
            way: row["ways"][of_text(way)]["added_to_first_token_ms"]["median"]
            for way in WAYS
            if of_text(way) in row["ways"]
        }
    if "requests" in results:
        columns["us a request"] = _medians(results["requests"]["cpu_us_per_request"])
    for row in results.get("messages", ()):
        title = f"us a message of {row['tokens_per_message']}"
        columns[title] = _medians(row["cpu_us_per_message"])
    for row in results.get("throughput", ()):
        column = columns.setdefault(f"tokens/s, {row['tokens_per_message']} a message", {})
        [way] = [way for way, name in WAYS.items() if name == row["way"]]
        column[way] = row["highest_rate_held_tokens_per_s"]
    return columns


def _medians(by_name: dict[str, Any]) -> dict[str, float | None]:
    return {way: by_name[name]["median"] for way, name in WAYS.items() if name in by_name}


def _cell(value: float | None, peer: float | None) -> str:
    """Returns a figure and its ratio to the peer's; of nothing, and less, there is no ratio."""
    if value is None:
        return ""
    ratio = f" ({value / peer:.2f})" if peer is not None and value > 0 and peer > 0 else ""
    return f"{value:,}{ratio}"
