"""The linear layer."""

import torch
from torch import nn
from torch.nn import functional


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
        return functional.linear(x, self.weight)
