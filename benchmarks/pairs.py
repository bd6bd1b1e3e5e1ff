"""What a change costs: figures of another checkout and of this one, in pairs."""

import statistics
from collections.abc import Iterator
from typing import Any

BEFORE, AFTER = "before", "after"


def turns(num_pairs: int) -> Iterator[str]:
    """Yields which checkout is next; who is first alternates."""
    for number in range(num_pairs):
        yield from (BEFORE, AFTER) if number % 2 else (AFTER, BEFORE)


def summary(values: dict[str, list[float]]) -> dict[str, Any]:
    """Returns medians, and the median of the pairs' differences with an interval around it.

    The interval is from the second least difference to the second greatest: of ten pairs these
    enclose the true median with 98 %. Of less than four pairs it is from the least to the greatest.
    """
    pairs = list(zip(values[BEFORE], values[AFTER], strict=True))
    differences = sorted(after - before for before, after in pairs)
    percents = sorted(100 * (after / before - 1) for before, after in pairs)
    cut = 1 if len(pairs) > 3 else 0
    return {
        "before": round(statistics.median(values[BEFORE]), 3),
        "after": round(statistics.median(values[AFTER]), 3),
        "difference": _interval(differences, cut),
        "change_percent": _interval(percents, cut),
        "values": {name: [round(value, 3) for value in row] for name, row in values.items()},
    }


def _interval(ordered: list[float], cut: int) -> dict[str, float]:
    return {
        "median": round(statistics.median(ordered), 3),
        "from": round(ordered[cut], 3),
        "to": round(ordered[-1 - cut], 3),
    }
