"""The gated activation of the feed-forward block."""

import torch

from kernels.silu_and_mul import silu_and_mul


def gated_silu(gate_up: torch.Tensor) -> torch.Tensor:
    """Returns silu(gate) * up, [num_tokens, size], of packed rows [num_tokens, 2 * size]."""
    return silu_and_mul(gate_up)
