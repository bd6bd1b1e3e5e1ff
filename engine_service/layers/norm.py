"""Root mean square normalisation, alone and fused with the residual sum before it."""

import torch
from torch import nn

from kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """Scales each row to unit root mean square, then by a weight per column."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds x to the residual stream and normalises the sum.

        Args:
            x: [num_tokens, size].
            residual: [num_tokens, size].

        Returns:
            The normalised rows and the new residual, each [num_tokens, size].
        """
        return add_rms_norm(x, residual, self.weight, self.eps)

    def alone(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises [num_tokens, size]."""
        return rms_norm(x, self.weight, self.eps)
