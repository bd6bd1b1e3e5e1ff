"""Units behind the numbers of options: `32k`, `8GiB`, `500ms`. A number without one stays as it is.

`k` and `M` are powers of 1,000, `Ki` and `Mi` of 1,024, as in Kubernetes. `K` is refused, since it
stands for either elsewhere.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_NUMBER = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)([A-Za-z]{1,10})")


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one quantity.

    Attributes:
        factors: What each unit stands for.
        listed: The units, for errors.
    """

    factors: dict[str, Fraction]
    listed: str

    def parse(self, text: str) -> Fraction | None:
        """Returns the exact value of a number with a unit, or None for another text."""
        match = _NUMBER.fullmatch(text)
        if match is None or match[2] not in self.factors:
            return None
        return Fraction(match[1]) * self.factors[match[2]]

    def hint(self, value: object) -> str:
        """Returns the end of an error: what could be written where an unknown unit was."""
        match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] in self.factors:
            return ""
        return f"; the units are {self.listed}"


def _units(listed: str, **factors: int | Fraction) -> Units:
    return Units({unit: Fraction(factor) for unit, factor in factors.items()}, listed)


_DECIMAL = {unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T"), start=1)}
_BINARY = {unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1)}
_SIZES = _DECIMAL | _BINARY

COUNTS = _units("k, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024)", **_SIZES)
BYTES = _units(
    "B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)",
    B=1,
    **_SIZES,
    **{f"{unit}B": factor for unit, factor in _SIZES.items()},
)
SECONDS = _units(
    "us, ms, s, m, h and d",
    us=Fraction(1, 10**6),
    ms=Fraction(1, 1000),
    s=1,
    m=60,
    h=3600,
    d=86_400,
)
