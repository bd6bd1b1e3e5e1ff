"""How a linear layer stores its weights and multiplies by them."""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import nn

from engine_service.layers.norm import RMSNorm
from engine_service.layers.weight_slot import Shard, WeightSlot, merged_slots
from kernels.linear import gated_linear, linear, linear_norm_linear, norm_linear
from kernels.partial_attention import PartialAttention
from kernels.silu_and_mul import silu_and_mul
from kernels.tile_shares import make_counters


class Unquantised:
    """Weights in the dtype of the computation. Another scheme would have the same methods.

    Not a module: a plain attribute is several times faster to look up than a module's parameter,
    and this one is read in each layer of each step.

    Attributes:
        weight: [out_features, in_features].
        bias: [out_features], or None. Added to the rounded product, in a separate kernel.
    """

    def __init__(
        self, in_features: int, out_features: int, dtype: torch.dtype, *, has_bias: bool
    ) -> None:
        """Creates the parameters on the current default device, not yet set."""
        self.weight = _parameter(out_features, in_features, dtype=dtype)
        self.bias = _parameter(out_features, dtype=dtype) if has_bias else None
        # Of this weight alone: another model in this process may run at the same time.
        self._counters = make_counters()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters by their names in the layer."""
        parameters = {"weight": self.weight}
        return parameters if self.bias is None else parameters | {"bias": self.bias}

    def slots(
        self, names: Sequence[str], sizes: Sequence[int], shards: Sequence[Shard | None]
    ) -> Iterator[WeightSlot]:
        """Yields the slots of projections that are stacked by rows."""
        for kind, parameter in self.parameters().items():
            yield from merged_slots([f"{name}.{kind}" for name in names], parameter, sizes, shards)

    def linear(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """As `Linear.forward`."""
        out = linear(x, self.weight, out, self._counters)
        return out if self.bias is None else out.add_(self.bias)

    def gated_linear(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear.gated_linear`."""
        if self.bias is None:
            return gated_linear(x, self.weight, self._counters)
        return silu_and_mul(self.linear(x))

    def norm_linear(
        self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None, *, is_gated: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Linear.norm_linear`."""
        is_fused = is_gated and self.bias is None
        out, residual = norm_linear(
            x, residual, norm.weight, norm.eps, self.weight, self._counters, is_gated=is_fused
        )
        if self.bias is not None:
            out.add_(self.bias)
        return (silu_and_mul(out) if is_gated and not is_fused else out), residual

    def linear_norm_linear(
        self,
        x: torch.Tensor | PartialAttention,
        residual: torch.Tensor,
        norm: RMSNorm,
        other: Self,
        *,
        is_gated: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Linear.linear_norm_linear`."""
        if self.bias is not None or (is_gated and other.bias is not None):
            assert isinstance(x, torch.Tensor), "parts have no bias behind them"
            return other.norm_linear(norm, self.linear(x), residual, is_gated=is_gated)
        out, residual = linear_norm_linear(
            x,
            self.weight,
            residual,
            norm.weight,
            norm.eps,
            other.weight,
            self._counters,
            other._counters,
            is_gated=is_gated,
        )
        return out if other.bias is None else out.add_(other.bias), residual


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
