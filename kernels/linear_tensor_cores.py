"""Linear projections of 5 to 16 rows: tensor cores multiply, and the weights are still the time.

A tile of so few rows and outputs is too small to divide over warps, so each warp multiplies some of
the columns, and the sums are added at the end, in one order. The outputs are the rows of
the matrix instruction, which has 16, and the rows its columns, of which 8 suffice. The root mean
square is divided out at the end too: the product does not wait for it, and rows are read only once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.gated_outputs import activated, weight_rows

MAX_ROWS = 16
MAX_NORM_ROWS = 8
"""With more, a norm of its own is faster than one in each program."""
MAX_WEIGHTS = 1 << 26
"""In larger matrices cuBLAS is as fast or faster."""
# These and the tilings: measured on an H200, bfloat16, shapes of Qwen3-0.6B to 8B.
_NUM_WARPS = 4
_TILE_BYTES = 16384
_MAX_ROW_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How programs divide a product.

    Attributes:
        block_out: Rows of the weight of a program.
        block_in: Columns that it multiplies at once, which its warps divide.
        num_stages: Tiles that are read ahead in the loop, and one.
    """

    block_out: int
    block_in: int
    num_stages: int


def tiling(weight: torch.Tensor) -> Tiling:
    """Returns the tiling for a weight, [out_features, in_features]."""
    out_features = weight.shape[0]
    block_out = 8
    if out_features >= 2048:
        block_out = 16 if out_features < 4096 else 32
    row_bytes = min(_TILE_BYTES // block_out, _MAX_ROW_BYTES)
    return Tiling(
        block_out=block_out,
        block_in=row_bytes // weight.element_size(),
        # Four do not fit into the 99 KiB of shared memory of compute capability 8.6 and 8.9.
        num_stages=3 if block_out == 16 else 4,
    )


def launch(
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
    """Computes what `kernels.linear.norm_linear` does, without a norm_weight the projection only.

    Args:
        x: [num_tokens, in_features], 1 to `MAX_ROWS` tokens
        residual: [num_tokens, in_features], or None
        norm_weight: [in_features], or None
        eps: added to the mean square
        weight: [out_features, in_features]
        out: [num_tokens, out_features], half as many if gated; written
        new_residual: [num_tokens, in_features], written; None if there is no residual
        is_gated: whether the weight holds gate and up
    """
    num_rows = x.shape[0]
    rows = max(8, triton.next_power_of_2(num_rows))
    out_features, in_features = weight.shape
    chosen = tiling(weight)
    _tensor_core_kernel[(triton.cdiv(out_features, chosen.block_out),)](
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
        ROWS=rows,
        BLOCK_OUT=chosen.block_out,
        PARTS=_NUM_WARPS,
        PART_IN=chosen.block_in // _NUM_WARPS,
        STAGES=chosen.num_stages,
        HAS_NORM=norm_weight is not None,
        HAS_RESIDUAL=residual is not None,
        IS_GATED=is_gated,
        num_warps=_NUM_WARPS,
        **dependent_launch(x),
    )


@triton.jit(do_not_specialize=["num_rows"])
def _tensor_core_kernel(
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
    PARTS: tl.constexpr,
    PART_IN: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    BLOCK_IN: tl.constexpr = PARTS * PART_IN
    dtype = out.dtype.element_ty
    program = tl.program_id(0)
    outs, is_out = weight_rows(program, num_outs, BLOCK_OUT, IS_GATED)
    rows = tl.arange(0, ROWS)
    parts = tl.arange(0, PARTS)[:, None, None] * PART_IN
    ins = parts + tl.arange(0, PART_IN)[None, None, :]  # [PARTS, 1, PART_IN]
    weights = weight + outs.to(tl.int64)[None, None, :] * weight_stride
    weight_ins = tl.permute(ins, (0, 2, 1))
    # These loads run while the previous kernel still computes the rows.
    first_tile = _weight_tile(weights, weight_ins, is_out, IN_FEATURES, BLOCK_IN)
    first_scale = _norm_scale(norm_weight, ins, IN_FEATURES) if HAS_NORM else 0.0
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros([PARTS, BLOCK_OUT, ROWS], tl.float32)
    squares = tl.zeros([PARTS, ROWS], tl.float32)
    # The first tile comes last, so that those of the loop are on their way at once.
    for start in tl.range(BLOCK_IN, IN_FEATURES, BLOCK_IN, num_stages=STAGES):
        columns = start + ins
        tile = _weight_tile(weights, start + weight_ins, is_out, IN_FEATURES, BLOCK_IN)
        scale = _norm_scale(norm_weight, columns, IN_FEATURES) if HAS_NORM else 0.0
        value, squares = _input_rows(
            *(x, residual, new_residual, x_stride, residual_stride, rows, columns, num_rows),
            *(scale, squares, dtype, IN_FEATURES, HAS_NORM, HAS_RESIDUAL),
        )
        products = tl.dot(
            tl.permute(tile, (0, 2, 1)),
            tl.permute(value, (0, 2, 1)),
            products,
            input_precision="ieee",
        )
    value, squares = _input_rows(
        *(x, residual, new_residual, x_stride, residual_stride, rows, ins, num_rows),
        *(first_scale, squares, dtype, IN_FEATURES, HAS_NORM, HAS_RESIDUAL),
    )
    products = tl.dot(
        tl.permute(first_tile, (0, 2, 1)),
        tl.permute(value, (0, 2, 1)),
        products,
        input_precision="ieee",
    )
    total = tl.trans(tl.sum(products, axis=0))  # [ROWS, BLOCK_OUT]
    if HAS_NORM:
        total *= tl.rsqrt(tl.sum(squares, axis=0) / IN_FEATURES + eps)[:, None]
    result, columns = activated(total, program, dtype, IS_GATED)
    tl.store(
        out + rows.to(tl.int64)[:, None] * num_outs + columns[None, :],
        result,
        mask=(rows < num_rows)[:, None] & (columns < num_outs)[None, :],
    )


@triton.jit
def _weight_tile(weights, columns, is_out, IN_FEATURES: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Returns [PARTS, PART_IN, BLOCK_OUT]."""
    mask = is_out[None, None, :]
    if IN_FEATURES % BLOCK_IN != 0:
        mask &= columns < IN_FEATURES
    return tl.load(weights + columns, mask=mask, other=0.0)


@triton.jit
def _norm_scale(norm_weight, columns, IN_FEATURES: tl.constexpr):
    return tl.load(norm_weight + columns, mask=columns < IN_FEATURES, other=0.0).to(tl.float32)


@triton.jit
def _input_rows(
    x,
    residual,
    new_residual,
    x_stride,
    residual_stride,
    rows,
    columns,
    num_rows,
    scale,
    squares,
    dtype: tl.constexpr,
    IN_FEATURES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Returns [PARTS, ROWS, PART_IN] to multiply, and the sums of squares with theirs added."""
    wide_rows = rows.to(tl.int64)[None, :, None]
    is_value = (rows < num_rows)[None, :, None] & (columns < IN_FEATURES)
    value = tl.load(x + wide_rows * x_stride + columns, mask=is_value, other=0.0)
    if HAS_RESIDUAL:
        added = tl.load(residual + wide_rows * residual_stride + columns, mask=is_value, other=0.0)
        # A sum over an axis, so that the compiler moves the sum into the layout of the matrix
        # instruction, and not each of the two, one after the other.
        value = tl.sum(tl.join(value, added).to(tl.float32), axis=3).to(dtype)
        tl.store(
            new_residual + wide_rows * IN_FEATURES + columns,
            value,
            mask=is_value & (tl.program_id(0) == 0),
        )
    if HAS_NORM:
        wide = value.to(tl.float32)
        squares += tl.sum(wide * wide, axis=2)
        value = (wide * scale).to(dtype)
    return value, squares
