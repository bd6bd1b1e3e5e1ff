"""Linear projections, alone and fused with the operation before them in a layer.

With few rows, the time is that of reading the weights, and a launch takes as long as a small
product. So each kernel also computes its input rows, by the norm or the gated activation, again in
every program. It reads its first weights before its rows are ready: whatever writes a weight must
have ended before. With more rows, torch (cuBLAS) computes the products.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels import reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.silu_and_mul import silu_and_mul

_MAX_ROWS = 4
# Measured on an H200, bfloat16, with the shapes of Qwen3-0.6B and 8B, as are the warps below.
_BLOCK_OUT = 4
_MAX_TILE = 4096
# With more multiplications than this, cuBLAS is faster.
_MAX_PRODUCTS = (1 << 24) - 1
_MAX_PRODUCTS_OF_ONE_TILE = (1 << 25) - 1


def linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiplies each row by the transposed weight.

    Args:
        x: [num_tokens, in_features], rows may be strided
        weight: [out_features, in_features] of the same type, rows may be strided
        out: [num_tokens, out_features] of the same type, written in place; None creates it

    Returns:
        [num_tokens, out_features], `out` if that is given

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight, x.shape[-1])
    if out is not None:
        check_dtype("out", out, x.dtype)
        check_shape("out", out, x.shape[0], weight.shape[0])
        return torch.mm(x, weight.t(), out=out)
    if x.device.type == "cpu":
        return reference.linear(x, weight)
    return _project(x, weight)


def norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the residual to x, normalises the sum, and projects it.

    Args:
        x: [num_tokens, in_features], rows may be strided
        residual: [num_tokens, in_features], rows may be strided; None adds nothing
        norm_weight: [in_features]
        eps: added to the mean square
        weight: [out_features, in_features], rows may be strided

    Returns:
        the projection, [num_tokens, out_features], and the sum, which is the next residual,
        [num_tokens, in_features]

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight, x.shape[-1])
    check_dtype("norm_weight", norm_weight, x.dtype)
    check_shape("norm_weight", norm_weight, x.shape[1])
    check_contiguous_rows("norm_weight", norm_weight)
    if residual is not None:
        check_dtype("residual", residual, x.dtype)
        check_shape("residual", residual, *x.shape)
        check_contiguous_rows("residual", residual)
    if x.device.type == "cpu":
        return reference.norm_linear(x, residual, norm_weight, eps, weight)
    if _is_small(x, weight) and x.shape[1] <= _MAX_TILE:
        return _norm_linear_triton(x, residual, norm_weight, eps, weight)
    if residual is None:
        return _project(rms_norm(x, norm_weight, eps), weight), x
    normed, total = add_rms_norm(x, residual, norm_weight, eps)
    return _project(normed, weight), total


def silu_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Projects gate * sigmoid(gate) * up, where x holds the gate and then up.

    Args:
        x: [num_tokens, 2 * in_features], rows may be strided
        weight: [out_features, in_features], rows may be strided

    Returns:
        [num_tokens, out_features]

    Raises:
        ValueError: an unsupported shape or type
    """
    if x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} columns; expected an even number")
    _check(x, weight, x.shape[-1] // 2)
    if x.device.type == "cpu":
        return reference.silu_linear(x, weight)
    if _is_small(x, weight):
        return _silu_linear_triton(x, weight)
    return F.linear(silu_and_mul(x), weight)


def _is_small(x: torch.Tensor, weight: torch.Tensor) -> bool:
    num_rows, is_one_tile = x.shape[0], weight.shape[1] <= _MAX_TILE
    max_products = _MAX_PRODUCTS_OF_ONE_TILE if is_one_tile else _MAX_PRODUCTS
    return num_rows <= _MAX_ROWS and num_rows * weight.numel() <= max_products


def _project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return _linear_triton(x, weight) if _is_small(x, weight) else F.linear(x, weight)


def _num_warps(block_in: int, num_rows: int) -> int:
    if block_in <= 1024:
        return 1 if num_rows <= 2 else 2
    return 4 if block_in <= 2048 else 8


def _check(x: torch.Tensor, weight: torch.Tensor, in_features: int) -> None:
    check_dtype("x", x)
    check_shape("x", x, None, None)
    check_contiguous_rows("x", x)
    check_dtype("weight", weight, x.dtype)
    check_shape("weight", weight, None, in_features)
    check_contiguous_rows("weight", weight)


def _linear_triton(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    _launch(x, None, None, 0.0, weight, out, None, is_gated=False)
    return out


def _norm_linear_triton(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    total = x
    if residual is not None:
        total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = None if residual is None else total
    _launch(x, residual, norm_weight, eps, weight, out, new_residual, is_gated=False)
    return out, total


def _silu_linear_triton(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    _launch(x, None, None, 0.0, weight, out, None, is_gated=True)
    return out


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
    num_rows = x.shape[0]
    out_features, in_features = weight.shape
    if num_rows == 0 or out_features == 0:
        return
    block_in = min(max(16, triton.next_power_of_2(in_features)), _MAX_TILE)
    _few_rows_kernel[(triton.cdiv(out_features, _BLOCK_OUT),)](
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
        out_features,
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
    out_features,
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
    outs = program * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    rows = tl.arange(0, ROWS)[:, None]
    ins = tl.arange(0, BLOCK_IN)
    is_out = outs < out_features
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
        if IS_GATED:
            up = tl.load(x + x_rows + IN_FEATURES + columns, mask=is_value, other=0.0)
            value = (value * tl.sigmoid(value) * up.to(tl.float32)).to(dtype).to(tl.float32)
        products += tile.to(tl.float32)[None, :, :] * value[:, None, :]
        if start + BLOCK_IN < IN_FEATURES:
            following = start + BLOCK_IN + ins
            tile = tl.load(
                weights + following[None, :],
                mask=is_out[:, None] & (following < IN_FEATURES)[None, :],
                other=0.0,
            )
    total = tl.sum(products, axis=2)  # [ROWS, BLOCK_OUT]
    tl.store(
        out + rows.to(tl.int64) * out_features + outs[None, :],
        total.to(dtype),
        mask=(rows < num_rows) & is_out[None, :],
    )
