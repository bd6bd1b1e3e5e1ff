"""Attention of one query per sequence over its blocks, split along the keys.

A program handles the query heads of one key-value head, as the rows of one tile, over one split of
one sequence. A second kernel combines the splits, unless there is only one. If sequences share a
prefix, another kernel reads it for all of them first (`shared_prefix.py`), and each sequence's
splits begin behind it.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.attention_tile import attend_to_keys
from kernels.checks import (
    check_dtype,
    check_out,
    check_paged_attention,
    check_shape,
    check_triton_head_dim,
    check_window,
)
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.shared_prefix import (
    SharedPrefixes,
    attend_to_prefixes,
    check_shared,
    num_shared_splits,
)

_MAX_SPLITS = 64
# Measured on an H200, bfloat16, head_dim 128.
_MIN_SPLIT_TOKENS = 64
_PROGRAMS_PER_MULTIPROCESSOR = 4
_TILE = 64
_NUM_WARPS = 2
_NUM_STAGES = 3


def paged_attention_decode(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seq_len: int,
    scale: float,
    out: torch.Tensor | None = None,
    window: int = 0,
    shared: SharedPrefixes | None = None,
) -> torch.Tensor:
    """Attends from the last token of each sequence to its tokens.

    Args:
        queries: [num_seqs, num_heads, head_dim], the queries at positions seq_lens - 1; any strides
            with the last dimension contiguous
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]; strides as for queries
        block_table: [num_seqs, max_blocks_per_seq] int32, rows may be strided; not read past a
            sequence's end
        seq_lens: [num_seqs] int32; a sequence of length 0 reads nothing and gives zeros
        max_seq_len: an upper bound of seq_lens, by which the work is split
        scale: multiplies the scores, positive
        out: [num_seqs, num_heads, head_dim] contiguous, receives the result; rows of sequences of
            length 0 stay unchanged; None allocates a tensor
        window: tokens that each query sees at most, its own among them; 0 means all
        shared: sequences whose first tokens are the same, in the same blocks, which are then read
            once; not with a window

    Returns:
        [num_seqs, num_heads, head_dim]

    Raises:
        ValueError: an unsupported shape, type or value
    """
    check_paged_attention(queries, kv_cache, block_table, scale)
    num_seqs = queries.shape[0]
    check_shape("block_table", block_table, num_seqs, None)
    check_dtype("seq_lens", seq_lens, torch.int32)
    check_shape("seq_lens", seq_lens, num_seqs)
    check_out(queries, out)
    check_window(window)
    if shared is not None:
        check_shared(shared, num_seqs)
        if window:
            raise ValueError(f"window is {window}; expected 0 beside shared prefixes")
    if queries.device.type == "cpu":
        return reference.paged_attention_decode(
            queries, kv_cache, block_table, seq_lens, max_seq_len, scale, out, window
        )
    if window:
        max_seq_len = min(max_seq_len, window + _TILE)
    num_multiprocessors = torch.cuda.get_device_properties(queries.device).multi_processor_count
    num_splits = _num_splits(num_seqs * kv_cache.shape[2], max_seq_len, num_multiprocessors)
    parts = Parts(num_own=num_splits)
    if shared is not None:
        num_shared = num_shared_splits(num_seqs, kv_cache.shape[2], num_multiprocessors)
        parts = Parts(num_own=num_splits, num_shared=num_shared)
    return _paged_attention_decode_triton(
        queries, kv_cache, block_table, seq_lens, scale, parts, out, window, shared
    )


class Parts(NamedTuple):
    """Into how many parts, which are combined, a sequence's tokens are divided."""

    num_own: int
    """Splits of the tokens that it reads alone."""
    num_shared: int = 0
    """Splits of a prefix that it shares; 0 if no sequence does."""

    @property
    def num_all(self) -> int:
        """Parts that have a place in memory."""
        return self.num_own + self.num_shared


def _num_splits(num_pairs: int, max_seq_len: int, num_multiprocessors: int) -> int:
    """Returns the number of splits of the keys of each of num_pairs (sequence, head).

    As many as occupy the GPU, while each split still has enough to read to be worth its start.
    """
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // max(num_pairs, 1)
    return max(1, min(wanted, -(-max_seq_len // _MIN_SPLIT_TOKENS), _MAX_SPLITS))


def _paged_attention_decode_triton(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    parts: Parts,
    out: torch.Tensor | None = None,
    window: int = 0,
    shared: SharedPrefixes | None = None,
) -> torch.Tensor:
    num_seqs, num_heads, head_dim = queries.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    check_triton_head_dim(head_dim)
    keeps_empty = out is not None
    if out is None:
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    if num_seqs == 0:
        return out
    group = num_heads // num_kv_heads
    # Of each split: the mixed values, and the logarithm of the sum of the weights.
    partial, log_totals = out, None
    scale *= math.log2(math.e)
    if parts.num_all > 1:
        shape = (num_seqs, num_heads, parts.num_all)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=queries.device)
        log_totals = torch.empty(shape, dtype=torch.float32, device=queries.device)
        if shared is not None:
            attend_to_prefixes(
                queries,
                kv_cache,
                block_table,
                shared,
                scale,
                parts.num_shared,
                partial,
                log_totals,
            )
    prefix_lens = None if shared is None else shared.prefix_lens
    is_wide = queries.dtype == torch.float32 or head_dim > 128
    _split_kernel[(num_seqs, num_kv_heads, parts.num_own)](
        queries,
        kv_cache,
        block_table,
        seq_lens,
        prefix_lens,
        partial,
        log_totals,
        queries.stride(0),
        queries.stride(1),
        *kv_cache.stride()[:4],
        block_table.stride(0),
        parts.num_all,
        scale,
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        TILE=32 if is_wide else _TILE,
        WINDOW=window,
        IS_SPLIT=parts.num_all > 1,
        KEEPS_EMPTY=keeps_empty,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
        **dependent_launch(queries),
    )
    if log_totals is not None:
        _combine_kernel[(num_seqs, num_heads)](
            partial,
            log_totals,
            prefix_lens,
            out,
            parts.num_all,
            parts.num_own,
            HEAD_DIM=head_dim,
            PARTS=triton.next_power_of_2(parts.num_all),
            KEEPS_EMPTY=keeps_empty,
            num_warps=4,
            **dependent_launch(queries),
        )
    return out


@triton.jit
def _find_keys(seq, seq_len, prefix_lens, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """Returns which keys the query sees.

    The first of all, and of this split's the first, the end of the whole tiles, and the end.
    """
    first_seen = 0
    first = 0
    if prefix_lens is not None:
        first = tl.load(prefix_lens + seq)
    if WINDOW > 0:
        first_seen = tl.maximum(seq_len - WINDOW, 0)
        first = first_seen // TILE * TILE
    split_len = tl.cdiv(tl.cdiv(seq_len - first, TILE), tl.num_programs(2)) * TILE
    start = first + tl.program_id(2) * split_len
    end = tl.minimum(start + split_len, seq_len)
    whole_end = end // TILE * TILE
    if prefix_lens is not None:
        # Tiles begin where the prefix ends.
        whole_end = start + (end - start) // TILE * TILE
    return first_seen, start, whole_end, end


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_parts"],
    do_not_specialize_on_alignment=["block_table", "seq_lens", "prefix_lens"],
)
def _split_kernel(
    queries,
    kv_cache,
    block_table,
    seq_lens,
    prefix_lens,
    partial,
    log_totals,
    query_seq_stride,
    query_head_stride,
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
    IS_SPLIT: tl.constexpr,
    KEEPS_EMPTY: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    seq = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    seq_len = tl.load(seq_lens + seq)
    first_seen, start, whole_end, end = _find_keys(seq, seq_len, prefix_lens, TILE, WINDOW)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    is_row = rows < GROUP
    heads = kv_head * GROUP + rows
    query = tl.load(
        queries + seq * query_seq_stride + heads[:, None] * query_head_stride + dims[None, :],
        mask=is_row[:, None],
        other=0.0,
    )  # [ROWS, HEAD_DIM]
    keys = kv_cache + kv_head * kv_head_stride
    mixed, log_total = attend_to_keys(
        query, keys, keys + half_stride, block_table + seq * table_stride,
        start, whole_end, end, first_seen, block_stride, token_stride, scale,
        BLOCK_SIZE, HEAD_DIM, ROWS, TILE, WINDOW,
    )  # fmt: skip
    num_heads = tl.num_programs(1) * GROUP
    if IS_SPLIT:
        places = (seq * num_heads + heads) * num_parts + split
        tl.store(
            partial + places[:, None] * HEAD_DIM + dims[None, :],
            mixed,
            mask=is_row[:, None] & (start < end),
        )
        tl.store(log_totals + places, log_total, mask=is_row)
    else:
        places = seq * num_heads + heads
        is_stored = is_row
        if KEEPS_EMPTY:
            is_stored = is_stored & (seq_len > 0)
        tl.store(
            partial + places[:, None] * HEAD_DIM + dims[None, :],
            mixed.to(partial.dtype.element_ty),
            mask=is_stored[:, None],
        )


@triton.jit(
    do_not_specialize=["num_parts", "num_own"], do_not_specialize_on_alignment=["prefix_lens"]
)
def _combine_kernel(
    partial,
    log_totals,
    prefix_lens,
    out,
    num_parts,
    num_own,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    KEEPS_EMPTY: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    indices = tl.arange(0, PARTS)
    dims = tl.arange(0, HEAD_DIM)
    end = num_parts
    if prefix_lens is not None:
        # Nobody writes the shared parts of a sequence that shares nothing.
        prefix_len = tl.load(prefix_lens + tl.program_id(0))
        end = tl.where(prefix_len > 0, num_parts, num_own)
    # Loads all parts: one without tokens leaves garbage, which is masked out below.
    parts = tl.load(
        partial + (place * num_parts + indices[:, None]) * HEAD_DIM + dims[None, :],
        mask=(indices < end)[:, None],
        other=0.0,
    )  # [PARTS, HEAD_DIM]
    logs = tl.load(
        log_totals + place * num_parts + indices, mask=indices < end, other=float("-inf")
    )
    is_used = logs > float("-inf")
    maximum = tl.max(logs, axis=0)
    # -inf - -inf is NaN, which must not arise in an empty sequence.
    weights = tl.where(
        is_used, tl.exp2(logs - tl.where(maximum > float("-inf"), maximum, 0.0)), 0.0
    )
    parts = tl.where(is_used[:, None], parts, 0.0)
    total = tl.sum(weights, axis=0)
    mixed = tl.sum(parts * weights[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    is_stored = dims >= 0
    if KEEPS_EMPTY:
        is_stored = tl.where(total > 0.0, is_stored, dims < 0)
    tl.store(out + place * HEAD_DIM + dims, mixed.to(out.dtype.element_ty), mask=is_stored)
