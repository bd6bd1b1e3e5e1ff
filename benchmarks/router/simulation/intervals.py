"""Means of a few seeds, with 95 % intervals of Student's t."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles, by degrees of freedom from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip

MAX_SAMPLES = len(_T) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean, and how far the true one may be off on either side."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half_width


def interval(samples: Sequence[float]) -> Interval:
    """Returns mean and interval of 2 to `MAX_SAMPLES` samples.

    Raises:
        ValueError: Another number of samples.
    """
    if not 2 <= len(samples) <= MAX_SAMPLES:
        raise ValueError(f"there are {len(samples)} samples; must be 2 to {MAX_SAMPLES}")
    mean = math.fsum(samples) / len(samples)
    variance = math.fsum((sample - mean) ** 2 for sample in samples) / (len(samples) - 1)
    return Interval(mean=mean, half_width=_T[len(samples) - 2] * math.sqrt(variance / len(samples)))
