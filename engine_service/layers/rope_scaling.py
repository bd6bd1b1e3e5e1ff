"""How rotary frequencies are scaled for longer sequences than in the training. Needs no torch.

The fields have the names that config.json gives them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """All positions are divided by a factor (Chen et al., Position Interpolation)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies are divided, high ones kept, those between blended (Llama 3.1).

    A frequency is low if it turns less than `low_freq_factor` times in the original length, and
    high if it turns more than `high_freq_factor` times.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """As Llama's, with a ramp over the dimensions, and longer queries and keys (Peng et al., YaRN).

    Dimensions are kept that turn more than `beta_fast` times in the original length, and divided
    that turn less than `beta_slow` times.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    """Queries and keys are multiplied by it."""
    truncate: bool
    """Whether the ramp begins and ends at whole dimensions."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
