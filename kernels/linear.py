"""Linear projections, alone and fused with the operations beside them in a layer.

With few rows, the time is that of reading the weights, and a launch takes as long as a small
product. With up to 4 rows and few weights, one kernel, below, also computes its input rows, by the
norm, again in every program, and the gated activation of what it has multiplied. It reads its first
weights before its rows are ready: whatever writes a weight must have ended before. With more
weights, up to 64 rows have a kernel for Hopper (`linear_hopper.py`), which reads as early.
Otherwise torch (cuBLAS) computes the products. The attention of one short sequence comes in parts,
which its projection combines (`partial_attention_linear.py`).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels import linear_hopper, reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.partial_attention import PartialAttention, combine_parts
from kernels.partial_attention_linear import multiply_parts, multiply_parts_before_norm
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.silu_and_mul import silu_and_mul
from kernels.tile_shares import check_counters

_MAX_ROWS = 4
# Measured on an H200, bfloat16, with the shapes of Qwen3-0.6B and 8B, as are the warps below.
_BLOCK_OUT = 4
_MAX_TILE = 4096
_MAX_PRODUCTS = (1 << 23) - 1
"""Multiplications up to which the kernel below is the fastest."""


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies each row by the transposed weight.

    Args:
        x: [num_tokens, in_features], rows may be strided
        weight: [out_features, in_features] of the same type, rows may be strided
        out: [num_tokens, out_features] of the same type, written in place; None creates it
        counters: as of `tile_shares.make_counters`, all 0 before and after; calls that may
            overlap need their own. None creates them

    Returns:
        [num_tokens, out_features], `out` if that is given

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight, counters, is_gated=False)
    if out is not None:
        check_dtype("out", out, x.dtype)
        check_shape("out", out, x.shape[0], weight.shape[0])
        return torch.mm(x, weight.t(), out=out)
    if x.device.type == "cpu":
        return reference.linear(x, weight)
    return _project(x, weight, counters, is_gated=False)


def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, counters: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes gate * sigmoid(gate) * up of two projections of each row.

    Args:
        x: [num_tokens, in_features], rows may be strided
        weight: [2 * out_features, in_features] of the same type, the rows of the gate and then
            those of up; rows may be strided
        counters: as of `linear`

    Returns:
        [num_tokens, out_features]

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight, counters, is_gated=True)
    if x.device.type == "cpu":
        return reference.gated_linear(x, weight)
    return _project(x, weight, counters, is_gated=True)


def norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    counters: torch.Tensor | None = None,
    *,
    is_gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the residual to x, normalises the sum, and projects it.

    Args:
        x: [num_tokens, in_features], rows may be strided
        residual: [num_tokens, in_features], rows may be strided; None adds nothing
        norm_weight: [in_features]
        eps: added to the mean square
        weight: [out_features, in_features], rows may be strided; twice the rows if gated
        counters: as of `linear`
        is_gated: projects as `gated_linear` does

    Returns:
        the projection, [num_tokens, out_features], and the sum, which is the next residual,
        [num_tokens, in_features]

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight, counters, is_gated=is_gated)
    _check_norm_weight(x, norm_weight)
    if residual is not None:
        check_dtype("residual", residual, x.dtype)
        check_shape("residual", residual, *x.shape)
        check_contiguous_rows("residual", residual)
    if x.device.type == "cpu":
        return reference.norm_linear(x, residual, norm_weight, eps, weight, is_gated=is_gated)
    if _is_small(x, weight, has_norm=True):
        return _norm_linear_triton(x, residual, norm_weight, eps, weight, is_gated=is_gated)
    if residual is None:
        normed, total = rms_norm(x, norm_weight, eps), x
    else:
        normed, total = add_rms_norm(x, residual, norm_weight, eps)
    return _project(normed, weight, counters, is_gated=is_gated), total


def linear_norm_linear(
    x: torch.Tensor | PartialAttention,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    next_weight: torch.Tensor,
    counters: torch.Tensor | None = None,
    next_counters: torch.Tensor | None = None,
    *,
    is_gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projects x, adds the residual, normalises the sum, and projects it, too.

    Args:
        x: [num_tokens, in_features], rows may be strided; or the attention of one token
        weight: [hidden, in_features] of the same type, rows may be strided
        residual: [num_tokens, hidden], rows may be strided
        norm_weight: [hidden]
        eps: added to the mean square
        next_weight: [out_features, hidden], rows may be strided; twice the rows if gated
        counters: as of `linear`, of the first product
        next_counters: likewise, of the second
        is_gated: the second projection is as that of `gated_linear`

    Returns:
        the second projection, [num_tokens, out_features], and the sum, which is the next residual,
        [num_tokens, hidden]

    Raises:
        ValueError: an unsupported shape or type
    """
    num_rows = 1
    if isinstance(x, PartialAttention):
        check_shape("weight", weight, None, x.mixed[0].numel())
        check_contiguous_rows("weight", weight)
    else:
        _check(x, weight, counters, is_gated=False)
        num_rows = x.shape[0]
    check_dtype("residual", residual, weight.dtype)
    check_shape("residual", residual, num_rows, weight.shape[0])
    check_contiguous_rows("residual", residual)
    _check_norm_weight(residual, norm_weight)
    _check(residual, next_weight, next_counters, is_gated=is_gated)
    norm = (residual, norm_weight, eps, next_weight)
    if weight.device.type == "cpu":
        if isinstance(x, PartialAttention):
            x = combine_parts(x).to(weight.dtype)
        return reference.linear_norm_linear(x, weight, *norm, is_gated=is_gated)
    if isinstance(x, PartialAttention):
        return _parts_norm_linear(x, weight, *norm, next_counters, is_gated=is_gated)
    is_small = _is_small(x, weight, has_norm=False) and _is_small(
        residual, next_weight, has_norm=True
    )
    if not is_small and linear_hopper.can_chain(x, weight, next_weight):
        return linear_hopper.multiply_norm_multiply(
            x, weight, *norm, counters, next_counters, is_gated=is_gated
        )
    projected = _project(x, weight, counters, is_gated=False)
    return norm_linear(projected, *norm, next_counters, is_gated=is_gated)


def _parts_norm_linear(
    parts: PartialAttention,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    next_weight: torch.Tensor,
    next_counters: torch.Tensor | None,
    *,
    is_gated: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    is_small = _is_small(residual, next_weight, has_norm=True)
    if not is_small and linear_hopper.can_end_chain(weight.shape[0], next_weight):
        scaled, new_residual, square_sums = multiply_parts_before_norm(
            parts, weight, residual, norm_weight
        )
        out = linear_hopper.end_chain(
            scaled, square_sums, eps, next_weight, next_counters, is_gated=is_gated
        )
        return out, new_residual
    return norm_linear(
        multiply_parts(parts, weight), residual, norm_weight, eps, next_weight, next_counters,
        is_gated=is_gated,
    )  # fmt: skip


def _is_small(x: torch.Tensor, weight: torch.Tensor, *, has_norm: bool) -> bool:
    num_rows, in_features = x.shape
    is_light = num_rows <= _MAX_ROWS and num_rows * weight.numel() <= _MAX_PRODUCTS
    return is_light and (in_features <= _MAX_TILE or not has_norm)


def _project(
    x: torch.Tensor, weight: torch.Tensor, counters: torch.Tensor | None, *, is_gated: bool
) -> torch.Tensor:
    if _is_small(x, weight, has_norm=False):
        return _linear_triton(x, weight, is_gated=is_gated)
    if linear_hopper.can_multiply(x, weight):
        return linear_hopper.multiply(x, weight, counters, is_gated=is_gated)
    product = F.linear(x, weight)
    return silu_and_mul(product) if is_gated else product


def _num_warps(block_in: int, num_rows: int) -> int:
    if block_in <= 1024:
        return 1 if num_rows <= 2 else 2
    return 4 if block_in <= 2048 else 8


def _check(
    x: torch.Tensor, weight: torch.Tensor, counters: torch.Tensor | None, *, is_gated: bool
) -> None:
    check_counters(counters)
    check_dtype("x", x)
    check_shape("x", x, None, None)
    check_contiguous_rows("x", x)
    check_dtype("weight", weight, x.dtype)
    check_shape("weight", weight, None, x.shape[1])
    check_contiguous_rows("weight", weight)
    if is_gated and weight.shape[0] % 2:
        raise ValueError(f"weight has {weight.shape[0]} rows; expected an even number")


def _check_norm_weight(x: torch.Tensor, norm_weight: torch.Tensor) -> None:
    check_dtype("norm_weight", norm_weight, x.dtype)
    check_shape("norm_weight", norm_weight, x.shape[1])
    check_contiguous_rows("norm_weight", norm_weight)


def _linear_triton(
    x: torch.Tensor, weight: torch.Tensor, *, is_gated: bool = False
) -> torch.Tensor:
    return _norm_linear_triton(x, None, None, 0.0, weight, is_gated=is_gated)[0]


def _norm_linear_triton(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    eps: float,
    weight: torch.Tensor,
    *,
    is_gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without a norm_weight there is no norm."""
    num_rows, num_outs = x.shape[0], weight.shape[0] // 2 if is_gated else weight.shape[0]
    out = torch.empty((num_rows, num_outs), dtype=x.dtype, device=x.device)
    new_residual = None
    if residual is not None:
        new_residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() > 0:
        _launch(x, residual, norm_weight, eps, weight, out, new_residual, is_gated=is_gated)
    return out, x if new_residual is None else new_residual


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    eps: float,
    weight: torch.Tensor,
    out: torch.Tensor,
    new_residual: torch.Tensor | None,
    *,
    is_gated: bool,
) -> None:
    num_rows, in_features = x.shape
    block_in = min(max(16, triton.next_power_of_2(in_features)), _MAX_TILE)
    _few_rows_kernel[(triton.cdiv(weight.shape[0], _BLOCK_OUT),)](
        x,
        residual,
        norm_weight,
        weight,
        out,
        new_residual,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        weight.stride(0),
        num_rows,
        out.shape[1],
        eps,
        IN_FEATURES=in_features,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_OUT=_BLOCK_OUT,
        BLOCK_IN=block_in,
        HAS_NORM=norm_weight is not None,
        HAS_RESIDUAL=residual is not None,
        IS_GATED=is_gated,
        num_warps=_num_warps(block_in, num_rows),
        **dependent_launch(x),
    )


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows_kernel(
    x,
    residual,
    norm_weight,
    weight,
    out,
    new_residual,
    x_stride,
    residual_stride,
    weight_stride,
    num_rows,
    num_outs,
    eps,
    IN_FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dtype = out.dtype.element_ty
    program = tl.program_id(0)
    outs, is_out = _weight_rows(program, num_outs, BLOCK_OUT, IS_GATED)
    rows = tl.arange(0, ROWS)[:, None]
    ins = tl.arange(0, BLOCK_IN)
    x_rows = rows.to(tl.int64) * x_stride
    residual_rows = rows.to(tl.int64) * residual_stride
    weights = weight + outs.to(tl.int64)[:, None] * weight_stride
    # These loads run while the previous kernel still computes the rows.
    tile = tl.load(
        weights + ins[None, :], mask=is_out[:, None] & (ins < IN_FEATURES)[None, :], other=0.0
    )  # [BLOCK_OUT, BLOCK_IN]
    if HAS_NORM:
        tl.static_assert(IN_FEATURES <= BLOCK_IN, "a norm needs whole rows in one block")
        norm_scale = tl.load(norm_weight + ins, mask=ins < IN_FEATURES, other=0.0)[None, :]
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros([ROWS, BLOCK_OUT, BLOCK_IN], tl.float32)
    for start in tl.static_range(0, IN_FEATURES, BLOCK_IN):
        columns = start + ins[None, :]
        is_value = (rows < num_rows) & (columns < IN_FEATURES)
        value = tl.load(x + x_rows + columns, mask=is_value, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            added = tl.load(residual + residual_rows + columns, mask=is_value, other=0.0)
            value = (value + added.to(tl.float32)).to(dtype)
            tl.store(
                new_residual + rows.to(tl.int64) * IN_FEATURES + columns,
                value,
                mask=is_value & (program == 0),
            )
            value = value.to(tl.float32)
        if HAS_NORM:
            inverse_rms = tl.rsqrt(tl.sum(value * value, axis=1) / IN_FEATURES + eps)[:, None]
            normed = (value * inverse_rms).to(dtype).to(tl.float32)
            value = (normed * norm_scale.to(tl.float32)).to(dtype).to(tl.float32)
        products += tile.to(tl.float32)[None, :, :] * value[:, None, :]
        if start + BLOCK_IN < IN_FEATURES:
            following = start + BLOCK_IN + ins
            tile = tl.load(
                weights + following[None, :],
                mask=is_out[:, None] & (following < IN_FEATURES)[None, :],
                other=0.0,
            )
    total = tl.sum(products, axis=2)  # [ROWS, BLOCK_OUT]
    result, columns = _activated(total, program, dtype, IS_GATED)
    tl.store(
        out + rows.to(tl.int64) * num_outs + columns[None, :],
        result,
        mask=(rows < num_rows) & (columns < num_outs)[None, :],
    )


@triton.jit
def _weight_rows(
    program, num_outs, BLOCK_OUT: tl.constexpr, IS_GATED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Returns the weight's rows of a program, and which exist: [BLOCK_OUT] each.

    Args:
        program: index of the program
        num_outs: columns of the output
        BLOCK_OUT: rows of the weight for each program
        IS_GATED: whether rows of gate and up alternate
    """
    places = program * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    if IS_GATED:
        outs = places // 2
        return outs + places % 2 * num_outs, outs < num_outs
    return places, places < num_outs


@triton.jit
def _activated(
    total, program, dtype: tl.constexpr, IS_GATED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Returns a program's outputs and their columns.

    Args:
        total: [ROWS, BLOCK_OUT] float32, the products with the rows of `_weight_rows`
        program: index of the program
        dtype: type of the outputs
        IS_GATED: whether to return gate * sigmoid(gate) * up, half as many
    """
    result = total.to(dtype)
    if IS_GATED:
        # Rounded before and after, as if the product and the activation were kernels of their own.
        pairs = tl.reshape(result.to(tl.float32), (total.shape[0], total.shape[1] // 2, 2))
        gate, up = tl.split(pairs)
        result = (gate * tl.sigmoid(gate) * up).to(dtype)
    num_columns: tl.constexpr = result.shape[1]
    return result, program * num_columns + tl.arange(0, num_columns)
