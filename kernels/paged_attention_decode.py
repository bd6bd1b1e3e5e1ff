"""Attention of one query per sequence over its blocks, split along the keys.

Lengths, the plan of splits, and which prefixes are shared, are read before the queries are ready:
whatever writes them must have ended before.

A program handles the query heads of one key-value head, as the rows of one tile, over one split of
one sequence. The last program of a sequence's key-value head combines the splits
(`attention_parts.py`). If sequences share a prefix, each sequence's splits begin behind it. At the
same time, another kernel reads the prefix for all of them, and a third one then combines the parts
of both (`shared_prefix.py`).
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
    check_dtype,
    check_out,
    check_paged_attention,
    check_shape,
    check_triton_head_dim,
    check_window,
)
from kernels.decode_splits import NUM_COLUMNS
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.gpu import num_multiprocessors
from kernels.shared_prefix import (
    SharedPrefixes,
    attend_to_prefixes,
    check_shared,
    combine_with_prefixes,
    num_seqs_of_program,
    num_shared_splits,
)


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
    counters: torch.Tensor | None = None,
    splits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attends from the last token of each sequence to its tokens.

    Args:
        queries: [num_seqs, num_heads, head_dim], the queries at positions seq_lens - 1; any strides
            with the last dimension contiguous
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]; strides as for queries
        block_table: [num_seqs, max_blocks_per_seq] int32, rows may be strided; not read past a
            sequence's end
        seq_lens: [num_seqs] int32; a sequence of length 0 reads nothing and gives zeros
        max_seq_len: an upper bound of seq_lens, by which the work is split if there is no plan
        scale: multiplies the scores, positive
        out: [num_seqs, num_heads, head_dim] contiguous, receives the result; rows of sequences of
            length 0 stay unchanged; None allocates a tensor
        window: tokens that each query sees at most, its own among them; 0 means all
        shared: sequences whose first tokens are the same, in the same blocks, which are then read
            once; not with a window
        counters: as of `attention_parts.make_counters`, all 0 before and after; calls that may
            overlap on the GPU need their own. None makes some, in another kernel
        splits: the plan of `decode_splits.split_sequences` for these lengths and this window; not
            with shared prefixes. None divides all sequences equally; the result is the same

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
    if counters is not None:
        check_dtype("counters", counters, torch.int32)
        check_shape("counters", counters, None)
    if splits is not None:
        check_dtype("splits", splits, torch.int32)
        check_shape("splits", splits, None, NUM_COLUMNS)
        if not splits.is_contiguous() or len(splits) <= num_seqs:
            raise ValueError(
                f"splits has {len(splits)} rows of strides {splits.stride()}; expected more than "
                f"{num_seqs}, contiguous"
            )
        if shared is not None:
            raise ValueError("splits is given; expected None beside shared prefixes")
    if queries.device.type == "cpu":
        return reference.paged_attention_decode(
            queries, kv_cache, block_table, seq_lens, max_seq_len, scale, out, window
        )
    if splits is None:
        parts = Parts(num_own=own_splits(kv_cache, num_seqs, max_seq_len, window))
    else:
        parts = Parts(num_own=1, num_further=len(splits) - num_seqs)
    if shared is not None:
        num_kv_heads = kv_cache.shape[2]
        seqs_of_program = num_seqs_of_program(queries.shape[1] // num_kv_heads, queries.dtype)
        num_shared = num_shared_splits(
            num_seqs, num_kv_heads, seqs_of_program, num_multiprocessors(queries.device)
        )
        parts = parts._replace(num_shared=num_shared)
    return _paged_attention_decode_triton(
        queries, kv_cache, block_table, seq_lens, scale, parts, out, window, shared, counters,
        splits,
    )  # fmt: skip


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
    counters: torch.Tensor | None = None,
    splits: torch.Tensor | None = None,
) -> torch.Tensor:
    num_seqs, num_heads, head_dim = queries.shape
    num_kv_heads = kv_cache.shape[2]
    check_triton_head_dim(head_dim)
    keeps_empty = out is not None
    if out is None:
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    if num_seqs == 0:
        return out
    scale *= math.log2(math.e)
    memory = allocate_parts(
        parts, num_seqs, num_heads, num_kv_heads, head_dim, queries.device, counters
    )
    if shared is not None:
        attend_to_prefixes(queries, kv_cache, block_table, shared, scale, parts, memory)
    compiled = launch_arguments(kv_cache, num_heads, window, parts)
    _split_kernel[(num_kv_heads, num_seqs + parts.num_further, parts.num_own)](
        queries,
        kv_cache,
        block_table,
        seq_lens,
        splits,
        None if shared is None else shared.prefix_lens,
        *memory,
        out,
        queries.stride(0),
        queries.stride(1),
        *kv_cache.stride()[:4],
        block_table.stride(0),
        parts.num_own + parts.num_shared,
        scale,
        NUM_COLUMNS=NUM_COLUMNS,
        KEEPS_EMPTY=keeps_empty,
        **compiled,
        **dependent_launch(queries),
    )
    if shared is not None:
        combine_with_prefixes(out, seq_lens, shared, num_kv_heads, compiled["TILE"], parts, memory)
    return out


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_parts"],
    do_not_specialize_on_alignment=["block_table", "seq_lens", "splits", "prefix_lens"],
)
def _split_kernel(
    queries,
    kv_cache,
    block_table,
    seq_lens,
    splits,
    prefix_lens,
    partial,
    log_totals,
    counters,
    out,
    query_seq_stride,
    query_head_stride,
    half_stride,
    block_stride,
    kv_head_stride,
    token_stride,
    table_stride,
    num_parts,
    scale,
    NUM_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    AT_ONCE: tl.constexpr,
    KEEPS_EMPTY: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    # Programs start in this order: the heads of the first sequence, then those of the next. If
    # longer sequences come first, the last programs to start are short, and end together.
    kv_head = tl.program_id(0).to(tl.int64)
    # What is read early is not read from this multiprocessor's own cache: in a graph, each step and
    # each layer has it at the same place.
    if splits is not None:
        program = splits + tl.program_id(1) * NUM_COLUMNS
        seq = tl.load(program, cache_modifier=".cg").to(tl.int64)
        split = tl.load(program + 1, cache_modifier=".cg")
        num_splits = tl.load(program + 2, cache_modifier=".cg")
        num_in_front = tl.load(program + 3, cache_modifier=".cg")
        seq_len = tl.load(program + 4, cache_modifier=".cg")
        if split < 0:
            return
    else:
        seq = tl.program_id(1).to(tl.int64)
        split, num_splits = tl.program_id(2), tl.num_programs(2)
        seq_len = tl.load(seq_lens + seq, cache_modifier=".cg")
    prefix_len = 0
    if prefix_lens is not None:
        prefix_len = tl.load(prefix_lens + seq, cache_modifier=".cg")
    first_seen, start, end, num_used = find_keys(
        seq_len, prefix_len, split, num_splits, TILE, WINDOW
    )
    if prefix_lens is None:
        wait_for_inputs(IS_DEPENDENT)
    else:
        # The kernel in front, which attends to the prefixes, has let this one start only after its
        # own wait, and what it writes is read only by the kernel behind this one. So one program
        # waits for it, for all.
        is_last = (kv_head == tl.num_programs(0) - 1) & (seq == tl.num_programs(1) - 1)
        if is_last & (split == num_splits - 1):
            wait_for_inputs(IS_DEPENDENT)
    if split >= num_used:
        return

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    heads = kv_head * GROUP + rows
    query = tl.load(
        queries + seq * query_seq_stride + heads[:, None] * query_head_stride + dims[None, :],
        mask=(rows < GROUP)[:, None],
        other=0.0,
        cache_modifier=".cg",
    )  # [ROWS, HEAD_DIM]
    keys = kv_cache + kv_head * kv_head_stride
    mixed, log_total = attend_to_keys(
        query, keys, keys + half_stride, block_table + seq * table_stride,
        start, end, first_seen, block_stride, token_stride, scale,
        BLOCK_SIZE, HEAD_DIM, ROWS, TILE, WINDOW, HAS_LONG_SPLITS=splits is None,
    )  # fmt: skip
    pair = seq * tl.num_programs(0) + kv_head
    if splits is not None:
        num_heads = tl.num_programs(0) * GROUP
        first_place = num_in_front.to(tl.int64) * num_heads + kv_head * GROUP
        head_stride, part_stride = 1, num_heads
    else:
        first_place = pair * GROUP * num_parts
        head_stride, part_stride = num_parts, 1
    end_part(
        mixed, log_total, partial, log_totals, counters, out, pair, split,
        seq_len, num_used, prefix_len > 0, first_place, head_stride, part_stride,
        GROUP, ROWS, HEAD_DIM, AT_ONCE, KEEPS_EMPTY,
    )  # fmt: skip
