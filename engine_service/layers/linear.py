"""The linear layer."""

import torch
from torch import nn

from engine_service.layers.norm import RMSNorm
from kernels.linear import linear, norm_linear, silu_linear


class Linear(nn.Module):
    """Multiplies by a weight matrix; there is no bias.

    Several projections of one input can share the matrix, one below the other: the packed product
    is one kernel, and its output holds their outputs side by side.
    """

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [num_tokens, in_features] to [num_tokens, out_features]."""
        return linear(x, self.weight)

    def of_normed(
        self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds x to the residual stream, normalises the sum and projects it.

        Args:
            norm: How to normalise.
            x: [num_tokens, in_features].
            residual: [num_tokens, in_features]; None where the stream begins, with x.

        Returns:
            The projection, [num_tokens, out_features], and the new residual.
        """
        return norm_linear(x, residual, norm.weight, norm.eps, self.weight)

    def of_gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Projects silu(gate) * up of packed rows [num_tokens, 2 * in_features]."""
        return silu_linear(gate_up, self.weight)
