"""The projection of attention that was left in parts (`partial_attention.py`).

Each program combines all parts anew, as a load of another part costs less than another kernel. Its
weights are in registers before the parts are ready: whatever writes a weight must have ended
before. As the first of two products with a norm between them, it leaves what the second one of
`linear_hopper.py` needs. `linear.linear_norm_linear` calls both functions, and checks the
arguments.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.dependent_launch import (
    dependent_launch,
    launch_dependents,
    wait_for_kernel_in_front,
)
from kernels.partial_attention import PART_TOKENS, PartialAttention

# Measured on an H200 with the shapes of Qwen3-0.6B and 1.7B. With fewer outputs for each program,
# more of them read all parts: 4 take 1 us longer.
_BLOCK_OUT = 16
_NUM_WARPS = 8


def multiply_parts(parts: PartialAttention, weight: torch.Tensor) -> torch.Tensor:
    """Projects the attention of one token.

    Args:
        parts: the attention
        weight: [out_features, num_heads * head_dim], rows may be strided

    Returns:
        [1, out_features]
    """
    out = torch.empty((1, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    _launch(parts, weight, out)
    return out


def multiply_parts_before_norm(
    parts: PartialAttention,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projects the attention of one token, and prepares the norm of its sum with the residual.

    Args:
        parts: the attention
        weight: [out_features, num_heads * head_dim], rows may be strided
        residual: [1, out_features]
        norm_weight: [out_features]

    Returns:
        the sum times the norm's weight and the sum, [1, out_features] each, and the sums of the
        squares of its tiles, [num_tiles, 1] float32
    """
    scaled = torch.empty((1, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    new_residual = torch.empty_like(scaled)
    num_tiles = triton.cdiv(weight.shape[0], _BLOCK_OUT)
    square_sums = torch.empty((num_tiles, 1), dtype=torch.float32, device=weight.device)
    _launch(parts, weight, scaled, residual, norm_weight, new_residual, square_sums)
    return scaled, new_residual, square_sums


def _launch(
    parts: PartialAttention,
    weight: torch.Tensor,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    new_residual: torch.Tensor | None = None,
    square_sums: torch.Tensor | None = None,
) -> None:
    max_parts, num_heads, head_dim = parts.mixed.shape
    num_outs = weight.shape[0]
    if num_outs == 0:
        return
    _parts_linear_kernel[(triton.cdiv(num_outs, _BLOCK_OUT),)](
        parts.mixed,
        parts.scales,
        parts.seq_lens,
        weight,
        residual,
        norm_weight,
        out,
        new_residual,
        square_sums,
        weight.stride(0),
        num_outs,
        NUM_HEADS=num_heads,
        HEADS=triton.next_power_of_2(num_heads),
        HEAD_DIM=head_dim,
        MAX_PARTS=max_parts,
        PART_TOKENS=PART_TOKENS,
        BLOCK_OUT=_BLOCK_OUT,
        WARPS=_NUM_WARPS,
        num_warps=_NUM_WARPS,
        **dependent_launch(weight),
    )


@gluon.jit(do_not_specialize_on_alignment=["seq_lens"])
def _parts_linear_kernel(
    mixed,
    scales,
    seq_lens,
    weight,
    residual,
    norm_weight,
    out,
    new_residual,
    square_sums,
    weight_stride,
    num_outs,
    NUM_HEADS: gl.constexpr,
    HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    MAX_PARTS: gl.constexpr,
    PART_TOKENS: gl.constexpr,
    BLOCK_OUT: gl.constexpr,
    WARPS: gl.constexpr,
    IS_DEPENDENT: gl.constexpr,
):
    lanes: gl.constexpr = HEAD_DIM // 8
    # A thread has the same inputs of all outputs, and of all parts.
    layout: gl.constexpr = gl.BlockedLayout(
        [BLOCK_OUT, 1, 8], [1, 32 // lanes, lanes], [1, WARPS, 1], [2, 1, 0]
    )
    first_and_heads: gl.constexpr = gl.SliceLayout(2, layout)
    outs_layout: gl.constexpr = gl.SliceLayout(1, first_and_heads)
    dtype: gl.constexpr = out.dtype.element_ty
    program = gl.program_id(0)
    outs = program * BLOCK_OUT + gl.arange(0, BLOCK_OUT, outs_layout)
    is_out = outs < num_outs
    heads = gl.arange(0, HEADS, gl.SliceLayout(0, first_and_heads))[None, :]
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    is_head = heads < NUM_HEADS
    columns = heads[:, :, None] * HEAD_DIM + dims
    tile = gl.load(
        weight + outs.to(gl.int64)[:, None, None] * weight_stride + columns,
        mask=is_out[:, None, None] & is_head[:, :, None],
        other=0.0,
    )  # [BLOCK_OUT, HEADS, HEAD_DIM]
    num_parts = gl.cdiv(gl.maximum(gl.load(seq_lens, cache_modifier=".cg"), 1), PART_TOKENS)
    # None is known when the kernel is compiled.
    if norm_weight is not None:
        norm_scale = gl.load(norm_weight + outs, mask=is_out, other=0.0)
    if IS_DEPENDENT:
        wait_for_kernel_in_front()
        launch_dependents()
    if norm_weight is not None:
        added = gl.load(residual + outs, mask=is_out, other=0.0, cache_modifier=".cg")
    parts = gl.arange(0, MAX_PARTS, outs_layout)[:, None]
    is_read = (parts < num_parts) & is_head
    places = parts * NUM_HEADS + heads  # [MAX_PARTS, HEADS]
    largest = gl.load(scales + places * 2, mask=is_read, other=float("-inf"), cache_modifier=".cg")
    totals = gl.load(scales + places * 2 + 1, mask=is_read, other=0.0, cache_modifier=".cg")
    attended = gl.load(
        mixed + places[:, :, None] * HEAD_DIM + dims,
        mask=is_read[:, :, None],
        other=0.0,
        cache_modifier=".cg",
    )  # [MAX_PARTS, HEADS, HEAD_DIM]
    maximum = gl.max(largest, axis=0)
    # -inf - -inf is NaN.
    factors = gl.exp2(largest - gl.where(maximum > float("-inf"), maximum, 0.0)[None, :])
    total = gl.sum(totals * factors, axis=0)
    factors = factors / gl.where(total > 0.0, total, 1.0)[None, :]
    attended = gl.sum(attended * factors[:, :, None], axis=0)
    # Rounded as if attention had stored it.
    attended = attended.to(dtype).to(gl.float32)
    products = tile.to(gl.float32) * attended[None, :, :]
    result = gl.sum(products.reshape([BLOCK_OUT, HEADS * HEAD_DIM]), axis=1)
    result = gl.convert_layout(result, outs_layout).to(dtype)
    if norm_weight is not None:
        result = (result.to(gl.float32) + added.to(gl.float32)).to(dtype)
        gl.store(new_residual + outs, result, mask=is_out)
        wide = result.to(gl.float32)
        gl.store(square_sums + program, gl.sum(gl.where(is_out, wide * wide, 0.0), axis=0))
        result = (wide * norm_scale.to(gl.float32)).to(dtype)
    gl.store(out + outs, result, mask=is_out)
