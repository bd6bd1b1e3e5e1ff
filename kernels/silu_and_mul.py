"""The gated activation of the feed-forward network."""

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs

# Not tuned: a plain choice, timed on an H200 (README.md).
_COLUMNS = 1024


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Computes gate * sigmoid(gate) * up, where x holds the gate and then up.

    Args:
        x: [num_tokens, 2 * intermediate], rows may be strided

    Returns:
        [num_tokens, intermediate]

    Raises:
        ValueError: an unsupported shape or type
    """
    check_dtype("x", x)
    check_shape("x", x, None, None)
    check_contiguous_rows("x", x)
    if x.shape[1] % 2:
        raise ValueError(f"x has {x.shape[1]} columns; expected an even number")
    if x.device.type == "cpu":
        return reference.silu_and_mul(x)
    return _silu_and_mul_triton(x)


def _silu_and_mul_triton(x: torch.Tensor) -> torch.Tensor:
    num_tokens, intermediate = x.shape[0], x.shape[1] // 2
    out = torch.empty((num_tokens, intermediate), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    grid = (num_tokens, triton.cdiv(intermediate, _COLUMNS))
    _silu_and_mul_kernel[grid](
        x,
        out,
        x.stride(0),
        intermediate,
        COLUMNS=_COLUMNS,
        num_warps=4,
        **dependent_launch(x),
    )
    return out


@triton.jit
def _silu_and_mul_kernel(
    x, out, x_stride, intermediate, COLUMNS: tl.constexpr, IS_DEPENDENT: tl.constexpr
):
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_inside = columns < intermediate
    gates = x + row * x_stride + columns
    gate = tl.load(gates, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gates + intermediate, mask=is_inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out + row * intermediate + columns, product.to(out.dtype.element_ty), mask=is_inside)
