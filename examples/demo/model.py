"""The model that the demo serves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "demo_model" / "checkpoint"
RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to serve.

    Attributes:
        path: Folder or hub ID.
        is_small: Whether it is ours, of a known small size.
        is_random: Whether its weights are random, and its answers noise.
    """

    path: str
    is_small: bool = False
    is_random: bool = False

    @classmethod
    def named(cls, name: str) -> Self:
        """Returns the demo model for "", the same with random weights for "random", else `name`."""
        if name in ("", RANDOM):
            return cls(path=str(CHECKPOINT), is_small=True, is_random=name == RANDOM)
        return cls(path=name)
