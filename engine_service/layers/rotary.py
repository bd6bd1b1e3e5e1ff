"""Rotary position embedding: the table of angles (Su et al., RoFormer, section 3.4)."""

import math

import torch

from engine_service.layers.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)


def rotary_table(
    head_dim: int, max_position: int, theta: float, scaling: RopeScaling | None = None
) -> torch.Tensor:
    """Returns a table of the rotation of each position.

    Args:
        head_dim: Dimensions of a head.
        max_position: Number of positions.
        theta: Base of the frequencies.
        scaling: How they are scaled; None leaves them as they are.

    Returns:
        [max_position, head_dim] float32 on the current default device: in each row the cosines of
        the head_dim / 2 angles, then their sines. YaRN's are longer than 1.
    """
    frequencies = _frequencies(head_dim, theta, scaling)  # [head_dim / 2]
    positions = torch.arange(max_position, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)  # [max_position, head_dim / 2]
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    if isinstance(scaling, YarnScaling):
        table *= scaling.attention_factor
    return table


def _frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    # In float32 and in this order, as models are trained: at late positions all digits count.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    wavelengths = theta**exponents  # in units of 2 pi tokens
    frequencies = 1.0 / wavelengths
    match scaling:
        case None:
            return frequencies
        case LinearScaling():
            return frequencies / scaling.factor
        case Llama3Scaling():
            return _blended(frequencies, scaling)
        case YarnScaling():
            kept = 1 - _ramp(head_dim, theta, scaling)
            divided = 1.0 / (scaling.factor * wavelengths)
            return divided * (1 - kept) + frequencies * kept


def _blended(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    length, factor = scaling.original_max_position_embeddings, scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    is_low, is_high = wavelengths > length / low, wavelengths < length / high
    share = (length / wavelengths - low) / (high - low)
    blend = (1 - share) * frequencies / factor + share * frequencies
    return torch.where(is_low, frequencies / factor, torch.where(is_high, frequencies, blend))


def _ramp(head_dim: int, theta: float, scaling: YarnScaling) -> torch.Tensor:
    """Returns [head_dim / 2]: 0 where a dimension is kept, 1 where it is divided."""

    def dimension(num_turns: float) -> float:
        length = scaling.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    dimensions = torch.arange(head_dim // 2, dtype=torch.float32)
    return ((dimensions - first) / (last - first)).clamp(0, 1)
