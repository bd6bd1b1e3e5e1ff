"""Query and key norm, rotary embedding and the store into the KV cache, in one pass.

A model without the norm takes the same kernel, compiled without it. All but the packed rows is read
before they are ready: whatever writes it must have ended before.
"""

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.checks import check_new_rows, check_triton_head_dim
from kernels.dependent_launch import dependent_launch, wait_for_inputs

_HEADS_PER_PROGRAM = 8
# Measured on an H200: with many tokens there are enough programs to make them small.
_MANY_TOKENS = 1024


def qk_norm_rope_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Normalises and rotates queries and keys, and stores keys and values in the KV cache.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] queries, keys, values; rows
            may be strided
        q_weight: [head_dim]; None, for both weights at once, leaves out the norm
        k_weight: [head_dim]
        eps: added to the mean square; unused without the norm
        cos_sin: [max_position, head_dim] float32, head_dim / 2 cosines and then as many sines
        positions: [num_tokens] int64
        cache_locs: [num_tokens] int64, block * block_size + offset; -1 stores nothing. Of two
            tokens with equal locations, either is stored
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], written in place; any strides
            with the last dimension contiguous
        num_heads: query heads

    Returns:
        the queries, [num_tokens, num_heads, head_dim]

    Raises:
        ValueError: an unsupported shape or type
    """
    check_new_rows(qkv, q_weight, k_weight, cos_sin, positions, cache_locs, kv_cache, num_heads)
    arguments = (
        qkv, q_weight, k_weight, eps, cos_sin, positions, cache_locs, kv_cache, num_heads,
    )  # fmt: skip
    if qkv.device.type == "cpu":
        return reference.qk_norm_rope_store(*arguments)
    return _qk_norm_rope_store_triton(*arguments)


def _qk_norm_rope_store_triton(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    check_triton_head_dim(head_dim)
    num_tokens = qkv.shape[0]
    queries = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return queries
    grid = (num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS_PER_PROGRAM))
    _qk_norm_rope_store_kernel[grid](
        qkv,
        q_weight,
        k_weight,
        eps,
        cos_sin,
        positions,
        cache_locs,
        kv_cache,
        queries,
        qkv.stride(0),
        cos_sin.stride(0),
        *kv_cache.stride()[:4],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        HEADS=_HEADS_PER_PROGRAM,
        num_warps=1 if num_tokens >= _MANY_TOKENS else 4,
        **dependent_launch(qkv),
    )
    return queries


@triton.jit
def _qk_norm_rope_store_kernel(
    qkv,
    q_weight,
    k_weight,
    eps,
    cos_sin,
    positions,
    cache_locs,
    kv_cache,
    queries,
    qkv_stride,
    cos_sin_stride,
    half_stride,
    block_stride,
    head_stride,
    token_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_query = heads < NUM_HEADS
    is_value = heads >= NUM_HEADS + NUM_KV_HEADS
    is_head = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    # A head is held as its two halves, which the rotation combines.
    HALF: tl.constexpr = HEAD_DIM // 2
    dims = tl.arange(0, HALF)[None, :]

    # None is known when the kernel is compiled.
    if q_weight is not None:
        q_a, q_b = tl.load(q_weight + dims), tl.load(q_weight + HALF + dims)  # [1, HALF]
        k_a, k_b = tl.load(k_weight + dims), tl.load(k_weight + HALF + dims)
    position = tl.load(positions + token)
    location = tl.load(cache_locs + token)
    angles = cos_sin + position * cos_sin_stride + dims
    cos, sin = tl.load(angles), tl.load(angles + HALF)  # [1, HALF]
    wait_for_inputs(IS_DEPENDENT)
    source = qkv + token * qkv_stride + heads[:, None] * HEAD_DIM + dims
    raw_a = tl.load(source, mask=is_head[:, None], other=0.0)  # [HEADS, HALF]
    raw_b = tl.load(source + HALF, mask=is_head[:, None], other=0.0)
    a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)
    if q_weight is not None:
        mean_square = tl.sum(a * a + b * b, axis=1) / HEAD_DIM
        inverse_rms = tl.rsqrt(mean_square + eps)[:, None]
        a = a * inverse_rms * tl.where(is_query[:, None], q_a, k_a).to(tl.float32)
        b = b * inverse_rms * tl.where(is_query[:, None], q_b, k_b).to(tl.float32)

    rotated_a = (a * cos - b * sin).to(raw_a.dtype)
    rotated_b = (b * cos + a * sin).to(raw_b.dtype)
    target = queries + (token * NUM_HEADS + heads[:, None]) * HEAD_DIM + dims
    tl.store(target, rotated_a, mask=is_query[:, None])
    tl.store(target + HALF, rotated_b, mask=is_query[:, None])

    kv_heads = (heads - NUM_HEADS - tl.where(is_value, NUM_KV_HEADS, 0)).to(tl.int64)
    target = (
        kv_cache
        + is_value[:, None].to(tl.int64) * half_stride
        + location // BLOCK_SIZE * block_stride
        + location % BLOCK_SIZE * token_stride
        + kv_heads[:, None] * head_stride
        + dims
    )
    is_stored = (is_head & (heads >= NUM_HEADS) & (location >= 0))[:, None]
    tl.store(target, tl.where(is_value[:, None], raw_a, rotated_a), mask=is_stored)
    tl.store(target + HALF, tl.where(is_value[:, None], raw_b, rotated_b), mask=is_stored)
