"""Attention of one token of one short sequence, left in parts for the product behind it.

Reading so few keys takes less time than a kernel's wait for the one in front of it. So norm,
rotation, store and attention are one kernel, all keys and values but the newest are in registers
before the packed row is ready, and programs do not wait for each other: each leaves a part, and the
product that follows combines them (`partial_attention_linear.py`).

A program handles the query heads of one key-value head and `PART_TOKENS` tokens. Keys are the rows
of the first matrix instruction and queries its columns, of which it has only eight.
"""

import math
from typing import NamedTuple

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from kernels import reference
from kernels.checks import check_dtype, check_new_rows, check_read_keys, check_shape
from kernels.dependent_launch import (
    dependent_launch,
    launch_dependents,
    wait_for_kernel_in_front,
)
from kernels.gpu import is_hopper

# Measured on an H200 with one sequence of Qwen3-0.6B and 1.7B. Parts of 64 tokens are as fast up to
# 512; more than 8 make the product behind them slower.
PART_TOKENS = 128
MAX_PARTS = 8
MAX_TOKENS = MAX_PARTS * PART_TOKENS
"""Of a sequence; `paged_attention_decode` is for longer ones."""
MAX_FEATURES = 2048
"""Of all query heads: the rows of weights that the product holds in registers are as long."""
_NUM_WARPS = 8
_HEAD_DIMS = (64, 128)
_QUERIES = gl.constexpr(8)


class PartialAttention(NamedTuple):
    """The attention of one token in parts, each of `PART_TOKENS` tokens.

    Parts without tokens are not written, but the first one always is. What a token weighs is
    2 ^ (its score - the largest score of its part).
    """

    mixed: torch.Tensor
    """[MAX_PARTS, num_heads, head_dim] float32, the weighted sums of values."""
    scales: torch.Tensor
    """[MAX_PARTS, num_heads, 2] float32: the largest score, and the sum of weights."""
    seq_lens: torch.Tensor
    """[1] int32, the tokens of all parts."""


def can_leave_parts(
    qkv: torch.Tensor, kv_cache: torch.Tensor, num_heads: int, max_seq_len: int
) -> bool:
    """Returns whether the kernel supports these arguments of `partial_attention`.

    And whether no sequence is longer than `MAX_TOKENS`, of which max_seq_len is an upper bound.
    """
    return len(qkv) == 1 and max_seq_len <= MAX_TOKENS and _is_supported(qkv, kv_cache, num_heads)


def _is_supported(qkv: torch.Tensor, kv_cache: torch.Tensor, num_heads: int) -> bool:
    _, _, num_kv_heads, _, head_dim = kv_cache.shape
    return (
        qkv.is_cuda
        and is_hopper(qkv.device)
        and qkv.dtype == torch.bfloat16
        and head_dim in _HEAD_DIMS
        and num_heads * head_dim <= MAX_FEATURES
        and num_heads // num_kv_heads <= _QUERIES.value
    )


def partial_attention(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> PartialAttention:
    """Does what `qk_norm_rope_store` and `paged_attention_decode` do, for one token.

    All but the packed row is read before that is ready: whatever writes it must have ended before.

    Args:
        qkv: [1, (num_heads + 2 * num_kv_heads) * head_dim] queries, keys, values
        q_weight: [head_dim]; None, for both weights at once, leaves out the norm
        k_weight: [head_dim]
        eps: added to the mean square; unused without the norm
        cos_sin: [max_position, head_dim] float32, head_dim / 2 cosines and then as many sines
        positions: [1] int64
        cache_locs: [1] int64, block * block_size + offset; -1 stores nothing
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], written in place; any strides
            with the last dimension contiguous
        num_heads: query heads
        block_table: [1, max_blocks_per_seq] int32, not read past the sequence's end
        seq_lens: [1] int32, with the token, at most `MAX_TOKENS`; 0 gives a part of zeros
        scale: multiplies the scores, positive

    Returns:
        the parts, whose order and number do not depend on the GPU

    Raises:
        ValueError: an unsupported shape or type
    """
    check_shape("qkv", qkv, 1, None)
    check_new_rows(qkv, q_weight, k_weight, cos_sin, positions, cache_locs, kv_cache, num_heads)
    check_dtype("seq_lens", seq_lens, torch.int32)
    check_shape("seq_lens", seq_lens, 1)
    check_read_keys(block_table, 1, scale)
    num_kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    arguments = (
        qkv, q_weight, k_weight, eps, cos_sin, positions, cache_locs, kv_cache,
    )  # fmt: skip
    if qkv.device.type == "cpu":
        parts = reference.partial_attention(
            *arguments, num_heads, block_table, seq_lens, scale, MAX_PARTS, PART_TOKENS
        )
        return PartialAttention(*parts, seq_lens)
    if not _is_supported(qkv, kv_cache, num_heads):
        raise ValueError(
            f"qkv is of {qkv.dtype}, on {torch.cuda.get_device_name(qkv.device)}, with {num_heads} "
            f"and {num_kv_heads} heads of {head_dim}; expected torch.bfloat16 on Hopper, up to "
            f"{_QUERIES.value} query heads for each key-value head and {MAX_FEATURES} elements in "
            f"all of them, and heads of {_HEAD_DIMS}"
        )
    return _partial_attention_gluon(*arguments, num_heads, block_table, seq_lens, scale)


def combine_parts(parts: PartialAttention) -> torch.Tensor:
    """Returns the attention, [1, num_heads * head_dim] float32. Waits for the GPU."""
    num_parts = max(1, -(-int(parts.seq_lens) // PART_TOKENS))
    return reference.combine_parts(parts.mixed[:num_parts], parts.scales[:num_parts])


def _partial_attention_gluon(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> PartialAttention:
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    parts = PartialAttention(
        torch.empty((MAX_PARTS, num_heads, head_dim), dtype=torch.float32, device=qkv.device),
        torch.empty((MAX_PARTS, num_heads, 2), dtype=torch.float32, device=qkv.device),
        seq_lens,
    )
    group = num_heads // num_kv_heads
    _partial_attention_kernel[(num_kv_heads, MAX_PARTS)](
        qkv,
        q_weight,
        k_weight,
        eps,
        cos_sin,
        positions,
        cache_locs,
        kv_cache,
        block_table,
        seq_lens,
        parts.mixed,
        parts.scales,
        cos_sin.stride(0),
        *kv_cache.stride()[:4],
        scale * math.log2(math.e),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        NEW_ROWS=triton.next_power_of_2(group + 2),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        TOKENS=PART_TOKENS,
        WARPS=_NUM_WARPS,
        num_warps=_NUM_WARPS,
        **dependent_launch(qkv),
    )
    return parts


@gluon.jit(do_not_specialize_on_alignment=["block_table", "seq_lens", "positions", "cache_locs"])
def _partial_attention_kernel(
    qkv,
    q_weight,
    k_weight,
    eps,
    cos_sin,
    positions,
    cache_locs,
    kv_cache,
    block_table,
    seq_lens,
    mixed_out,
    scales_out,
    cos_sin_stride,
    half_stride,
    block_stride,
    head_stride,
    token_stride,
    scale,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    NEW_ROWS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TOKENS: gl.constexpr,
    WARPS: gl.constexpr,
    IS_DEPENDENT: gl.constexpr,
):
    # A head is held as its two halves, which the rotation combines.
    HALF: gl.constexpr = HEAD_DIM // 2
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    dtype: gl.constexpr = qkv.dtype.element_ty
    layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1], [16, _QUERIES])
    # A thread reads 8 elements at once. Both operands have the same order of them, so any will do.
    key_layout: gl.constexpr = gl.DotOperandLayout(0, layout, 8)
    query_layout: gl.constexpr = gl.DotOperandLayout(1, layout, 8)
    weight_layout: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    kv_head, part = gl.program_id(0).to(gl.int64), gl.program_id(1)
    seq_len = gl.load(seq_lens, cache_modifier=".cg")
    start = part * TOKENS
    if start >= gl.maximum(seq_len, 1):
        return
    # The newest token is not in the cache yet.
    end = gl.minimum(start + TOKENS, seq_len - 1)
    keys = kv_cache + kv_head * head_stride
    key_a, key_b = _load_keys(
        keys, block_table, start, end, block_stride, token_stride,
        BLOCK_SIZE, TOKENS, HALF, key_layout,
    )  # fmt: skip
    value = _load_values(
        keys + half_stride, block_table, start, end, block_stride, token_stride,
        BLOCK_SIZE, TOKENS, HEAD_DIM, WARPS, gl.DotOperandLayout(0, layout, 2),
    )  # fmt: skip
    location = gl.load(cache_locs, cache_modifier=".cg")
    row_layout: gl.constexpr = gl.BlockedLayout([1, HALF // 32], [1, 32], [WARPS, 1], [1, 0])
    new_a, new_b = _wait_for_new_rows(
        qkv, q_weight, k_weight, eps, cos_sin, positions, cos_sin_stride, kv_head,
        NUM_HEADS, NUM_KV_HEADS, NEW_ROWS, HALF, row_layout, IS_DEPENDENT,
    )  # fmt: skip
    value_dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(1, layout))
    new_value = gl.load(
        qkv + (NUM_HEADS + NUM_KV_HEADS + kv_head) * HEAD_DIM + value_dims, cache_modifier=".cg"
    )
    has_newest = (seq_len > start) & (seq_len <= start + TOKENS)
    if has_newest & (location >= 0):
        target = keys + location // BLOCK_SIZE * block_stride + location % BLOCK_SIZE * token_stride
        _store_newest(target, new_a, new_b, half_stride, GROUP)

    # Sixteen rows, as the first operand has at least. Those that nothing stores may hold NaN: their
    # products stay in their own row or column, and are dropped.
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    shared_a = gl.allocate_shared_memory(dtype, [16, HALF], plain)
    shared_b = gl.allocate_shared_memory(dtype, [16, HALF], plain)
    shared_a.slice(0, NEW_ROWS).store(new_a)
    shared_b.slice(0, NEW_ROWS).store(new_b)
    query_a = shared_a.slice(0, _QUERIES).permute((1, 0)).load(query_layout)  # [HALF, _QUERIES]
    query_b = shared_b.slice(0, _QUERIES).permute((1, 0)).load(query_layout)
    scores = _multiply(key_a, key_b, query_a, query_b, layout) * scale  # [TOKENS, _QUERIES]
    # Of the products of the new rows with the queries, those of the key.
    products = _multiply(
        shared_a.load(key_layout), shared_b.load(key_layout), query_a, query_b, layout
    )
    is_new_key = (gl.arange(0, 16, gl.SliceLayout(1, layout)) == GROUP)[:, None]
    new_score = gl.sum(gl.where(is_new_key, products, 0.0), axis=0) * scale  # [_QUERIES]
    tokens = (start + gl.arange(0, TOKENS, gl.SliceLayout(1, layout)))[:, None]
    scores = gl.where(tokens < end, scores, float("-inf"))
    scores = gl.where(tokens == seq_len - 1, new_score[None, :], scores)
    maximum = gl.max(scores, axis=0)
    # -inf - -inf is NaN.
    base = gl.where(maximum > float("-inf"), maximum, 0.0)
    weights = gl.convert_layout(gl.exp2(scores - base[None, :]).to(dtype), weight_layout)
    mixed = mma_v2(value, weights, gl.zeros([HEAD_DIM, _QUERIES], gl.float32, layout))
    new_weight = gl.exp2(new_score - base).to(dtype).to(gl.float32)
    mixed += gl.where(has_newest, new_value.to(gl.float32)[:, None] * new_weight[None, :], 0.0)

    first_head = part.to(gl.int64) * NUM_HEADS + kv_head * GROUP
    queries = gl.arange(0, _QUERIES, gl.SliceLayout(0, layout))
    mixed_places = mixed_out + (first_head + queries)[None, :] * HEAD_DIM + value_dims[:, None]
    gl.store(mixed_places, mixed, mask=(queries < GROUP)[None, :])
    _store_scales(scales_out + first_head * 2, maximum, GROUP)
    _store_scales(scales_out + first_head * 2 + 1, gl.sum(weights.to(gl.float32), axis=0), GROUP)


@gluon.jit
def _store_newest(target, new_a, new_b, half_stride, GROUP: gl.constexpr):
    """Stores the key and the value among the new rows."""
    layout: gl.constexpr = new_a.type.layout
    HALF: gl.constexpr = new_a.shape[1]
    rows = gl.arange(0, new_a.shape[0], gl.SliceLayout(1, layout))[:, None]
    dims = gl.arange(0, HALF, gl.SliceLayout(0, layout))[None, :]
    target = target + gl.where(rows > GROUP, half_stride, 0) + dims
    is_stored = (rows == GROUP) | (rows == GROUP + 1)
    gl.store(target, new_a, mask=is_stored)
    gl.store(target + HALF, new_b, mask=is_stored)


@gluon.jit
def _multiply(rows_a, rows_b, query_a, query_b, LAYOUT: gl.constexpr):
    """Returns the products of rows, given as their halves, with the queries."""
    products = gl.zeros([rows_a.shape[0], _QUERIES], gl.float32, LAYOUT)
    return mma_v2(rows_b, query_b, mma_v2(rows_a, query_a, products))


@gluon.jit
def _store_scales(target, values, GROUP: gl.constexpr):
    """Stores one of the two values of each query's scale."""
    queries = gl.arange(0, _QUERIES, values.type.layout)
    gl.store(target + queries * 2, values, mask=queries < GROUP)


@gluon.jit
def _wait_for_new_rows(
    qkv, q_weight, k_weight, eps, cos_sin, positions, cos_sin_stride, kv_head,
    NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, NEW_ROWS: gl.constexpr,
    HALF: gl.constexpr, LAYOUT: gl.constexpr, IS_DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Returns the halves of the new rows of a head, normalised and rotated, [NEW_ROWS, HALF].

    They are the queries, the key, and then the value, in all further rows.
    """
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    dtype: gl.constexpr = qkv.dtype.element_ty
    rows = gl.arange(0, NEW_ROWS, gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, HALF, gl.SliceLayout(0, LAYOUT))[None, :]
    is_key, is_value = (rows == GROUP)[:, None], (rows > GROUP)[:, None]
    heads = gl.where(rows < GROUP, kv_head * GROUP + rows, NUM_HEADS + kv_head)
    heads = gl.where(rows > GROUP, NUM_HEADS + NUM_KV_HEADS + kv_head, heads)
    # None is known when the kernel is compiled.
    if q_weight is not None:
        q_a, q_b = gl.load(q_weight + dims), gl.load(q_weight + HALF + dims)
        k_a, k_b = gl.load(k_weight + dims), gl.load(k_weight + HALF + dims)
        weight_a, weight_b = gl.where(is_key, k_a, q_a), gl.where(is_key, k_b, q_b)
    angles = cos_sin + gl.load(positions, cache_modifier=".cg") * cos_sin_stride + dims
    cos, sin = gl.load(angles), gl.load(angles + HALF)
    if IS_DEPENDENT:
        wait_for_kernel_in_front()
        launch_dependents()
    source = qkv + (heads * (2 * HALF))[:, None] + dims
    raw_a = gl.load(source, cache_modifier=".cg")
    raw_b = gl.load(source + HALF, cache_modifier=".cg")
    a, b = raw_a.to(gl.float32), raw_b.to(gl.float32)
    if q_weight is not None:
        inverse_rms = gl.rsqrt(gl.sum(a * a + b * b, axis=1) / (2 * HALF) + eps)[:, None]
        a = a * inverse_rms * weight_a.to(gl.float32)
        b = b * inverse_rms * weight_b.to(gl.float32)
    new_a = gl.where(is_value, raw_a, (a * cos - b * sin).to(dtype))
    return new_a, gl.where(is_value, raw_b, (b * cos + a * sin).to(dtype))


@gluon.jit
def _places(
    block_table, start, end, block_stride, token_stride,
    BLOCK_SIZE: gl.constexpr, TOKENS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Returns where tokens are within a half of the cache, [TOKENS] int64, and which there are."""
    tokens = start + gl.arange(0, TOKENS, LAYOUT)
    is_token = tokens < end
    # Not from this multiprocessor's own cache: in a graph, each step has it at the same place.
    blocks = gl.load(
        block_table + tokens // BLOCK_SIZE, mask=is_token, other=0, cache_modifier=".cg"
    ).to(gl.int64)
    return blocks * block_stride + (tokens % BLOCK_SIZE).to(gl.int64) * token_stride, is_token


@gluon.jit
def _load_keys(
    keys, block_table, start, end, block_stride, token_stride,
    BLOCK_SIZE: gl.constexpr, TOKENS: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Returns the halves of keys as the first operand, [TOKENS, HALF]."""
    places, is_token = _places(
        block_table, start, end, block_stride, token_stride, BLOCK_SIZE, TOKENS,
        gl.SliceLayout(1, LAYOUT),
    )  # fmt: skip
    keys += places[:, None] + gl.arange(0, HALF, gl.SliceLayout(0, LAYOUT))[None, :]
    key_a = gl.load(keys, mask=is_token[:, None], other=0.0)
    return key_a, gl.load(keys + HALF, mask=is_token[:, None], other=0.0)


@gluon.jit
def _load_values(
    values, block_table, start, end, block_stride, token_stride,
    BLOCK_SIZE: gl.constexpr, TOKENS: gl.constexpr, HEAD_DIM: gl.constexpr, WARPS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """Returns values as the first operand, [HEAD_DIM, TOKENS], by way of shared memory."""
    lanes: gl.constexpr = HEAD_DIM // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    places, is_token = _places(
        block_table, start, end, block_stride, token_stride, BLOCK_SIZE, TOKENS,
        gl.SliceLayout(1, layout),
    )  # fmt: skip
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    value = gl.load(
        values + places[:, None] + dims[None, :], mask=is_token[:, None], other=0.0
    )  # [TOKENS, HEAD_DIM]
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    shared = gl.allocate_shared_memory(value.dtype, [TOKENS, HEAD_DIM], swizzled)
    shared.store(value)
    return shared.permute((1, 0)).load(LAYOUT)
