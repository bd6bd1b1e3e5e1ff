"""Decode attention from packed rows: norm, rotation and store in the kernel that attends.

Each program normalises and rotates its own queries. The one whose split ends with the sequence also
stores the new key and value, and then reads them with the others. As in `qk_norm_rope_store`, the
weights are read before the packed rows are ready.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.attention_parts import (
    Parts,
    allocate_parts,
    end_part,
    find_keys,
    launch_arguments,
    own_splits,
)
from kernels.attention_tile import attend_to_keys
from kernels.checks import (
    check_block_table,
    check_scale,
    check_seq_lens,
    check_triton_head_dim,
    check_window,
)
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.qk_norm_rope_store import check_packed, norm_and_rotate


def packed_attention_decode(
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
    max_seq_len: int,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """Stores the last token of each sequence, and attends from it to the sequence's tokens.

    The same as `qk_norm_rope_store` and then `paged_attention_decode`.

    Args:
        qkv: [num_seqs, (num_heads + 2 * num_kv_heads) * head_dim] queries, keys, values; rows may
            be strided
        q_weight: [head_dim]; None, for both weights at once, leaves out the norm
        k_weight: [head_dim]
        eps: added to the mean square; unused without the norm
        cos_sin: [max_position, head_dim] float32, head_dim / 2 cosines and then as many sines
        positions: [num_seqs] int64
        cache_locs: [num_seqs] int64, block * block_size + offset, where the sequence's block table
            has its last token; -1 stores nothing
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], written in place; any strides
            with the last dimension contiguous
        num_heads: query heads
        block_table: [num_seqs, max_blocks_per_seq] int32, rows may be strided; not read past a
            sequence's end
        seq_lens: [num_seqs] int32, with the last token; a sequence of length 0 gives zeros
        max_seq_len: an upper bound of seq_lens, by which the work is split
        scale: multiplies the scores, positive
        window: tokens that each query sees at most, its own among them; 0 means all

    Returns:
        [num_seqs, num_heads, head_dim]

    Raises:
        ValueError: an unsupported shape, type or value
    """
    packed = (qkv, q_weight, k_weight, eps, cos_sin, positions, cache_locs, kv_cache, num_heads)
    check_packed(*packed)
    num_seqs = qkv.shape[0]
    check_block_table(block_table, num_seqs)
    check_seq_lens(seq_lens, num_seqs)
    check_scale(scale)
    check_window(window)
    if qkv.device.type == "cpu":
        return reference.packed_attention_decode(
            *packed, block_table, seq_lens, max_seq_len, scale, window
        )
    parts = Parts(num_own=own_splits(kv_cache, num_seqs, max_seq_len, window))
    return _packed_attention_decode_triton(*packed, block_table, seq_lens, scale, parts, window)


def _packed_attention_decode_triton(
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
    parts: Parts,
    window: int = 0,
) -> torch.Tensor:
    _, _, num_kv_heads, _, head_dim = kv_cache.shape
    check_triton_head_dim(head_dim)
    num_seqs = qkv.shape[0]
    out = torch.empty((num_seqs, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_seqs == 0:
        return out
    memory = allocate_parts(parts, num_seqs, num_heads, num_kv_heads, head_dim, qkv.device)
    _packed_kernel[(num_seqs, num_kv_heads, parts.num_own)](
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
        *memory,
        out,
        qkv.stride(0),
        cos_sin.stride(0),
        *kv_cache.stride()[:4],
        block_table.stride(0),
        parts.num_all,
        scale * math.log2(math.e),
        **launch_arguments(kv_cache, num_heads, window),
        **dependent_launch(qkv),
    )
    return out


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_parts"],
    do_not_specialize_on_alignment=["positions", "cache_locs", "block_table", "seq_lens"],
)
def _packed_kernel(
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
    partial,
    log_totals,
    counters,
    out,
    qkv_stride,
    cos_sin_stride,
    half_stride,
    block_stride,
    kv_head_stride,
    token_stride,
    table_stride,
    num_parts,
    scale,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    AT_ONCE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    seq = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    # A head is held as its two halves, which the rotation combines.
    HALF: tl.constexpr = HEAD_DIM // 2
    halves = tl.arange(0, HALF)[None, :]
    q_a, q_b, k_a, k_b = None, None, None, None
    if q_weight is not None:
        q_a, q_b = tl.load(q_weight + halves), tl.load(q_weight + HALF + halves)  # [1, HALF]
        k_a, k_b = tl.load(k_weight + halves), tl.load(k_weight + HALF + halves)
    wait_for_inputs(IS_DEPENDENT)
    seq_len = tl.load(seq_lens + seq)
    position = tl.load(positions + seq)
    location = tl.load(cache_locs + seq)
    first_seen, start, whole_end, end, num_used = find_keys(seq_len, 0, TILE, WINDOW)
    if tl.program_id(2) >= num_used:
        return

    rows = tl.arange(0, ROWS)
    is_row = (rows < GROUP)[:, None]
    packed = qkv + seq * qkv_stride
    source = packed + (kv_head * GROUP + rows)[:, None] * HEAD_DIM + halves
    raw_a = tl.load(source, mask=is_row, other=0.0)  # [ROWS, HALF]
    raw_b = tl.load(source + HALF, mask=is_row, other=0.0)
    angles = cos_sin + position * cos_sin_stride + halves
    cos, sin = tl.load(angles), tl.load(angles + HALF)  # [1, HALF]
    keys = kv_cache + kv_head * kv_head_stride
    if end == seq_len and location >= 0:
        target = keys + location // BLOCK_SIZE * block_stride + location % BLOCK_SIZE * token_stride
        new_key = packed + (tl.num_programs(1) * GROUP + kv_head) * HEAD_DIM
        key_a, key_b = norm_and_rotate(
            tl.load(new_key + halves), tl.load(new_key + HALF + halves), k_a, k_b, eps, cos, sin
        )
        tl.store(target + halves, key_a)
        tl.store(target + HALF + halves, key_b)
        dims = tl.arange(0, HEAD_DIM)
        value = tl.load(new_key + tl.num_programs(1) * HEAD_DIM + dims)
        tl.store(target + half_stride + dims, value)
        # Other threads of the program read them.
        tl.debug_barrier()

    query_a, query_b = norm_and_rotate(raw_a, raw_b, q_a, q_b, eps, cos, sin)
    query = tl.join(query_a, query_b).permute(0, 2, 1).reshape(ROWS, HEAD_DIM)
    mixed, log_total = attend_to_keys(
        query, keys, keys + half_stride, block_table + seq * table_stride,
        start, whole_end, end, first_seen, block_stride, token_stride, scale,
        BLOCK_SIZE, HEAD_DIM, ROWS, TILE, WINDOW,
    )  # fmt: skip
    end_part(
        mixed, log_total, partial, log_totals, counters, out,
        seq_len, num_used, 0, num_parts,
        GROUP, ROWS, HEAD_DIM, AT_ONCE, KEEPS_EMPTY=False,
    )  # fmt: skip
