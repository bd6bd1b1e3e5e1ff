"""Histograms in plain characters."""

import bisect
import itertools
import math
from collections.abc import Iterator

from pagestream.bench.sketch import Sketch

_MAX_ROWS = 10
_BAR = "#"
_LEAST = 1e-6
"""Seconds below which nothing is told apart."""
_SCALES = (
    (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.3, 8.0),
    (1.0, 1.6, 2.5, 4.0, 6.3),
    (1.0, 2.0, 5.0),
    (1.0,),
)
"""Bounds within a power of ten, from fine to coarse."""


def histogram(title: str, sketch: Sketch, width: int) -> Iterator[str]:
    """Yields the lines of a histogram of seconds, at least one, at most so many characters wide."""
    yield f"{title}, {sketch.count:,} values"
    bounds = _bounds(sketch.minimum, sketch.maximum)
    counts = [0] * (len(bounds) - 1)
    for value, count in sketch:
        row = bisect.bisect_right(bounds, value) - 1
        counts[min(max(row, 0), len(counts) - 1)] += count
    shown = [row for row, count in enumerate(counts) if count]
    bounds = bounds[shown[0] : shown[-1] + 2]
    counts = counts[shown[0] : shown[-1] + 1]
    labels = [f"{_text(low)} - {_text(high)}" for low, high in itertools.pairwise(bounds)]
    label_width = max(map(len, labels))
    number_width = len(f"{max(counts):,}")
    bar_width = max(1, width - label_width - number_width - 7)
    for label, count in zip(labels, counts, strict=True):
        # What occurred at all is seen.
        bar = _BAR * max(round(bar_width * count / max(counts)), int(count > 0))
        yield f"  {label:>{label_width}} | {count:>{number_width},} {bar}".rstrip()


def _bounds(low: float, high: float) -> list[float]:
    """Returns round bounds of rows that hold all values between two."""
    low, high = max(low, _LEAST), max(high, _LEAST)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    bounds: list[float] = []
    for scale in _SCALES:
        marks = [step * 10.0**power for power in powers for step in scale]
        first = max(0, bisect.bisect_right(marks, low) - 1)
        last = bisect.bisect_right(marks, high)
        bounds = marks[first : last + 1]
        if len(bounds) <= _MAX_ROWS + 1:
            break
    return bounds


def _text(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} us"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:,.4g} s"
