"""RMSNorm, alone and fused with the addition of the residual."""

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs

_MAX_HIDDEN = 32768
_COLUMNS_OF_WARP = 256
"""With 512 or 1,024, layers of 72 to 128 rows took as long or up to 1 % longer on an H200."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Divides each row by its root mean square and multiplies by the weight.

    Args:
        x: [num_tokens, hidden], rows may be strided
        weight: [hidden], of the same type
        eps: added to the mean square

    Returns:
        [num_tokens, hidden]

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight)
    if x.device.type == "cpu":
        return reference.rms_norm(x, weight, eps)
    return _rms_norm_triton(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the residual to x, and normalises the sum.

    Args:
        x: [num_tokens, hidden], rows may be strided
        residual: [num_tokens, hidden], rows may be strided
        weight: [hidden], of the same type
        eps: added to the mean square

    Returns:
        the normalised sum and the sum, which is the next residual, both [num_tokens, hidden]

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, weight)
    check_dtype("residual", residual, x.dtype)
    check_shape("residual", residual, *x.shape)
    check_contiguous_rows("residual", residual)
    if x.device.type == "cpu":
        return reference.add_rms_norm(x, residual, weight, eps)
    return _add_rms_norm_triton(x, residual, weight, eps)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    check_dtype("x", x)
    check_shape("x", x, None, None)
    check_contiguous_rows("x", x)
    check_dtype("weight", weight, x.dtype)
    check_shape("weight", weight, x.shape[1])
    check_contiguous_rows("weight", weight)
    if not 0 < x.shape[1] <= _MAX_HIDDEN:
        raise ValueError(f"hidden is {x.shape[1]}; expected 1 to {_MAX_HIDDEN}")


def _rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, out, None)
    return out


def _add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, eps, out, new_residual)
    return out, new_residual


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    new_residual: torch.Tensor | None,
) -> None:
    num_tokens, hidden = x.shape
    if num_tokens == 0:
        return
    columns = triton.next_power_of_2(hidden)
    _rms_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        out,
        new_residual,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        hidden,
        eps,
        HAS_RESIDUAL=residual is not None,
        COLUMNS=columns,
        num_warps=min(max(columns // _COLUMNS_OF_WARP, 1), 16),
        **dependent_launch(x),
    )


@triton.jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    new_residual,
    x_stride,
    residual_stride,
    hidden,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dtype = out.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    # No kernel writes the weight, so it is read while waiting.
    scale = tl.load(weight + columns, mask=is_inside, other=0.0)
    wait_for_inputs(IS_DEPENDENT)
    wide = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        added = tl.load(residual + row * residual_stride + columns, mask=is_inside, other=0.0)
        total = (wide + added.to(tl.float32)).to(dtype)
        tl.store(new_residual + row * hidden + columns, total, mask=is_inside)
        # The norm uses the sum as rounded and stored.
        wide = total.to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + eps)
    normed = (wide * inverse_rms).to(dtype).to(tl.float32)
    scaled = normed * scale.to(tl.float32)
    tl.store(out + row * hidden + columns, scaled.to(dtype), mask=is_inside)
