"""Pseudo-random numbers that depend on an index alone, equal on every device."""

import torch


def index_hash(indices: torch.Tensor, key: int) -> torch.Tensor:
    """Hashes integers with the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        indices: int64 of any shape.
        key: Chooses the function; signed, 64 bits.

    Returns:
        int64 of the same shape, all 64 bits of which are random.
    """
    x = indices * (0x9E3779B97F4A7C15 - (1 << 64))
    x.add_(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        x.mul_(factor - (1 << 64))
    return x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))
