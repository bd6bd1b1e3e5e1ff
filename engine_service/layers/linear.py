"""The linear layer."""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import nn

from engine_service.layers.norm import RMSNorm
from engine_service.layers.weight_scheme import Unquantised
from engine_service.layers.weight_slot import Shard, WeightSlot
from kernels.partial_attention import PartialAttention


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

    def gated_linear(self, x: torch.Tensor) -> torch.Tensor:
        """Returns silu(gate) * up of packed outputs: [num_tokens, out_features / 2]."""
        return self.scheme.gated_linear(x)

    def norm_linear(
        self,
        norm: RMSNorm,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        *,
        is_gated: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds x to the residual stream, normalises the sum and projects it.

        Args:
            norm: The norm to apply.
            x: [num_tokens, in_features].
            residual: [num_tokens, in_features]; None if the stream begins with x.
            is_gated: Projects as `gated_linear` does.

        Returns:
            The projection, [num_tokens, out_features], half as wide if gated, and the new residual.
        """
        return self.scheme.norm_linear(norm, x, residual, is_gated=is_gated)

    def linear_norm_linear(
        self,
        x: torch.Tensor | PartialAttention,
        residual: torch.Tensor,
        norm: RMSNorm,
        other: Self,
        *,
        is_gated: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the projection of x to the residual stream, and projects the normalised sum.

        Args:
            x: [num_tokens, in_features], or the attention of one token, if there is no bias.
            residual: [num_tokens, out_features].
            norm: The norm to apply to the sum.
            other: Projects what is normalised.
            is_gated: The other projects as its `gated_linear` does.

        Returns:
            The other's projection and the new residual.
        """
        return self.scheme.linear_norm_linear(x, residual, norm, other.scheme, is_gated=is_gated)

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
