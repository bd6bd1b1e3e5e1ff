"""The linear layer."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from engine_service.layers.norm import RMSNorm
from engine_service.layers.weight_scheme import Unquantised
from engine_service.layers.weight_slot import Shard, WeightSlot


class Linear(nn.Module):
    """Multiplies by a weight matrix, and adds a bias if there is one.

    Several projections of one input can share the matrix, stacked by rows. The packed product is
    one kernel, and its output holds their outputs side by side. The weight scheme decides how the
    matrix is stored and multiplied.
    """

    def __init__(
        self, in_features: int, out_features: int, dtype: torch.dtype, *, has_bias: bool = False
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.scheme = Unquantised(in_features, out_features, dtype, has_bias=has_bias)
        for name, parameter in self.scheme.parameters().items():
            self.register_parameter(name, parameter)

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Maps [num_tokens, in_features] to [num_tokens, out_features], `out` if that is given."""
        return self.scheme.linear(x, out)

    def norm_linear(
        self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds x to the residual stream, normalises the sum and projects it.

        Args:
            norm: The norm to apply.
            x: [num_tokens, in_features].
            residual: [num_tokens, in_features]; None if the stream begins with x.

        Returns:
            The projection, [num_tokens, out_features], and the new residual.
        """
        return self.scheme.norm_linear(norm, x, residual)

    def silu_linear(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Projects silu(gate) * up of packed rows [num_tokens, 2 * in_features]."""
        return self.scheme.silu_linear(gate_up)

    def slots(
        self,
        names: Sequence[str],
        sizes: Sequence[int] | None = None,
        shards: Sequence[Shard | None] | None = None,
    ) -> Iterator[WeightSlot]:
        """Yields the slots of the stored tensors.

        Args:
            names: Names of the projections in a checkpoint, in row order.
            sizes: Rows of each here; None if there is only one.
            shards: The part of each that is here; None if all are whole.
        """
        sizes = [self.out_features] if sizes is None else sizes
        return self.scheme.slots(names, sizes, [None] * len(names) if shards is None else shards)
