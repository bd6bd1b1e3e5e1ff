"""Causal attention of the last tokens of each sequence over its blocks.

A program handles a run of query tokens of one sequence with all query heads of one key-value head,
as the rows of one tile. It goes through the keys from the first to the last that any row sees. The
tiles of keys that all rows see entirely come first and need no mask, unless there is a window.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import reference
from kernels.attention_tile import accumulate, cache_offsets
from kernels.checks import (
    check_dtype,
    check_out,
    check_paged_attention,
    check_shape,
    check_triton_head_dim,
    check_window,
)
from kernels.gpu import is_hopper
from kernels.paged_attention_prefill_hopper import can_attend, paged_attention_prefill_hopper

_MIN_DESCRIPTOR_TOKENS = 512
"""With fewer tokens, kernels that use the bulk copy engine start too slowly: 128 tokens take 10 us
instead of 8, and 17 to 21 us more on the host."""


def paged_attention_prefill(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    out: torch.Tensor | None = None,
    window: int = 0,
) -> torch.Tensor:
    """Attends causally from the last tokens of each sequence to the tokens before them.

    Sequence i's queries are rows query_start_loc[i] to query_start_loc[i + 1], and are the last of
    its seq_lens[i] tokens, whose keys and values are all in the cache. Rows before the first
    sequence and after the last one belong to no sequence.

    Args:
        queries: [num_tokens, num_heads, head_dim], any strides with the last dimension contiguous
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]; strides as for queries
        block_table: [num_seqs, max_blocks_per_seq] int32, rows may be strided; not read past a
            sequence's end
        query_start_loc: [num_seqs + 1] int32
        seq_lens: [num_seqs] int32
        max_query_len: the largest query length, or an upper bound; tiles need not be larger
        scale: multiplies the scores, positive
        out: [num_tokens, num_heads, head_dim] contiguous, receives the result; None allocates a
            tensor
        window: tokens that each query sees at most, its own among them; 0 means all

    Returns:
        [num_tokens, num_heads, head_dim]; rows that belong to no sequence are not set

    Raises:
        ValueError: an unsupported shape, type or value
    """
    check_paged_attention(queries, kv_cache, block_table, scale)
    num_seqs = block_table.shape[0]
    for name, tensor, size in (
        ("query_start_loc", query_start_loc, num_seqs + 1),
        ("seq_lens", seq_lens, num_seqs),
    ):
        check_dtype(name, tensor, torch.int32)
        check_shape(name, tensor, size)
    check_out(queries, out)
    check_window(window)
    if queries.device.type == "cpu":
        return reference.paged_attention_prefill(
            queries,
            kv_cache,
            block_table,
            query_start_loc,
            seq_lens,
            max_query_len,
            scale,
            out,
            window,
        )
    has_descriptors = is_hopper(queries.device) and queries.shape[0] >= _MIN_DESCRIPTOR_TOKENS
    if has_descriptors and num_seqs and not window and can_attend(queries, kv_cache):
        return paged_attention_prefill_hopper(
            queries, kv_cache, block_table, query_start_loc, seq_lens, scale, out
        )
    tiling = _choose_tiling(queries, kv_cache, max_query_len, has_descriptors)
    return _paged_attention_prefill_triton(
        queries, kv_cache, block_table, query_start_loc, seq_lens, scale, tiling, out, window
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiling:
    """How the work is divided, and the launch options of a program."""

    rows: int
    """Rows of a query tile: tokens times the query heads of a key-value head."""
    tile: int
    """Tokens of a tile of keys and values."""
    has_descriptors: bool
    """Reads keys and values with the bulk copy engine; a tile is then within one block."""
    num_warps: int
    num_stages: int


def _choose_tiling(
    queries: torch.Tensor, kv_cache: torch.Tensor, max_query_len: int, has_descriptors: bool
) -> _Tiling:
    """Chooses the tiling; uses descriptors only where requested and possible."""
    _, num_heads, head_dim = queries.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    is_wide = queries.dtype == torch.float32 or head_dim > 128
    max_rows = 64 if is_wide else 128
    wanted_rows = max(16, triton.next_power_of_2(max_query_len * group))
    rows = max(min(wanted_rows, max_rows), triton.next_power_of_2(group))
    tile = 32 if is_wide else 64
    # The copy engine needs all addresses to be multiples of 16 bytes.
    is_aligned = kv_cache.data_ptr() % 16 == 0 and all(
        stride * kv_cache.element_size() % 16 == 0 for stride in kv_cache.stride()[:4]
    )
    # Short queries use no descriptors, or each of their tile sizes would have two variants.
    has_descriptors &= rows == max_rows and not is_wide and is_aligned and block_size % tile == 0
    # Measured on an H200, bfloat16, head_dim 128.
    is_large = rows == 128 and not has_descriptors
    return _Tiling(
        rows=rows,
        tile=tile,
        has_descriptors=has_descriptors,
        num_warps=8 if is_large else 4,
        num_stages=3 if is_large else 2,
    )


def _paged_attention_prefill_triton(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    tiling: _Tiling,
    out: torch.Tensor | None = None,
    window: int = 0,
) -> torch.Tensor:
    num_tokens, num_heads, head_dim = queries.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    check_triton_head_dim(head_dim)
    num_seqs = block_table.shape[0]
    if out is None:
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    if num_tokens == 0 or num_seqs == 0:
        return out
    group = num_heads // num_kv_heads
    keys, values = kv_cache[0], kv_cache[1]
    if tiling.has_descriptors:
        box = [1, 1, tiling.tile, head_dim]
        keys = TensorDescriptor.from_tensor(keys, box)
        values = TensorDescriptor.from_tensor(values, box)
    # Each sequence starts a new tile: this upper bound needs no value from the device.
    num_query_tiles = triton.cdiv(num_tokens, tiling.rows // group) + num_seqs
    _prefill_kernel[(num_query_tiles * num_kv_heads,)](
        queries,
        keys,
        values,
        block_table,
        query_start_loc,
        seq_lens,
        out,
        queries.stride(0),
        queries.stride(1),
        *kv_cache.stride()[1:4],
        block_table.stride(0),
        num_seqs,
        scale * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        ROWS=tiling.rows,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        TILE=tiling.tile,
        WINDOW=window,
        HAS_DESCRIPTORS=tiling.has_descriptors,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out


@triton.jit
def _find_sequence(query_start_loc, num_seqs, query_tile, TOKENS: tl.constexpr):
    """Returns the sequence that owns a query tile, or -1 for a tile before the first.

    Sequence i's tiles start at query_start_loc[i] // TOKENS + i, which leaves room for all of them.
    """
    CHUNK: tl.constexpr = 256
    num_started = 0
    for first in range(0, num_seqs, CHUNK):
        seqs = first + tl.arange(0, CHUNK)
        is_seq = seqs < num_seqs
        starts = tl.load(query_start_loc + seqs, mask=is_seq, other=0)
        is_started = is_seq & (starts // TOKENS + seqs <= query_tile)
        num_started += tl.sum(is_started.to(tl.int32), axis=0)
    return num_started - 1


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_seqs"],
    do_not_specialize_on_alignment=["block_table", "query_start_loc", "seq_lens"],
)
def _prefill_kernel(
    queries,
    keys,
    values,
    block_table,
    query_start_loc,
    seq_lens,
    out,
    query_token_stride,
    query_head_stride,
    block_stride,
    kv_head_stride,
    token_stride,
    table_stride,
    num_seqs,
    scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_DESCRIPTORS: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // GROUP
    # The last tiles of a sequence see most keys and go first, so that no long one runs alone last.
    query_tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    seq = _find_sequence(query_start_loc, num_seqs, query_tile, TOKENS)
    if seq < 0:
        return
    query_start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - query_start
    first_token = (query_tile - query_start // TOKENS - seq) * TOKENS
    if first_token >= query_len:
        return
    context_len = tl.load(seq_lens + seq) - query_len

    rows = tl.arange(0, ROWS)
    tokens = first_token + rows // GROUP
    is_row = (rows < TOKENS * GROUP) & (tokens < query_len)
    heads = (kv_head * GROUP + rows % GROUP).to(tl.int64)
    query_rows = (query_start + tokens).to(tl.int64)
    dims = tl.arange(0, HEAD_DIM)
    query = tl.load(
        queries
        + query_rows[:, None] * query_token_stride
        + heads[:, None] * query_head_stride
        + dims[None, :],
        mask=is_row[:, None],
        other=0.0,
    )  # [ROWS, HEAD_DIM]
    positions = context_len + tokens
    end = context_len + tl.minimum(first_token + TOKENS, query_len)
    if WINDOW > 0:
        # From the tile of the first token that any row sees. Few tiles are seen by all rows.
        whole_start = tl.maximum(context_len + first_token + 1 - WINDOW, 0) // TILE * TILE
        whole_end = whole_start
    else:
        whole_start = 0
        whole_end = (context_len + first_token + 1) // TILE * TILE

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    table = block_table + seq.to(tl.int64) * table_stride
    for start in range(whole_start, whole_end, TILE):
        key, value = _load_tile(
            keys, values, table, start, end, kv_head, block_stride, kv_head_stride, token_stride,
            BLOCK_SIZE, HEAD_DIM, TILE, HAS_DESCRIPTORS, IS_WHOLE=True,
        )  # fmt: skip
        scores = tl.dot(query, key.T, input_precision="ieee")
        maximum, total, mixed = accumulate(scores, value, maximum, total, mixed, scale)
    for start in range(whole_end, end, TILE):
        key, value = _load_tile(
            keys, values, table, start, end, kv_head, block_stride, kv_head_stride, token_stride,
            BLOCK_SIZE, HEAD_DIM, TILE, HAS_DESCRIPTORS, IS_WHOLE=False,
        )  # fmt: skip
        scores = tl.dot(query, key.T, input_precision="ieee")
        is_seen = start + tl.arange(0, TILE)[None, :] <= positions[:, None]
        if WINDOW > 0:
            is_seen = is_seen & (start + tl.arange(0, TILE)[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(is_seen, scores, float("-inf"))
        maximum, total, mixed = accumulate(
            scores, value, maximum, total, mixed, scale, MAY_SEE_NONE=WINDOW > 0
        )

    if WINDOW > 0:
        # Rows past the sequence's end may see nothing.
        total = tl.where(is_row, total, 1.0)
    mixed = mixed / total[:, None]
    target = out + (query_rows[:, None] * (NUM_KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM
    tl.store(target + dims[None, :], mixed.to(out.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def _load_tile(
    keys,
    values,
    table,
    start,
    end,
    kv_head,
    block_stride,
    kv_head_stride,
    token_stride,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    HAS_DESCRIPTORS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Returns keys and values, [TILE, HEAD_DIM] each; values are 0 for tokens from end on."""
    is_token = (start + tl.arange(0, TILE) < end)[:, None]
    if HAS_DESCRIPTORS:
        block = tl.load(table + start // BLOCK_SIZE)
        place = [block, kv_head, start % BLOCK_SIZE, 0]
        key = keys.load(place).reshape(TILE, HEAD_DIM)
        value = values.load(place).reshape(TILE, HEAD_DIM)
        if not IS_WHOLE:
            # Unwritten entries may hold anything, and 0 * NaN is NaN.
            value = tl.where(is_token, value, 0.0)
    else:
        offsets = cache_offsets(
            table, start, end, block_stride, token_stride, BLOCK_SIZE, TILE, IS_WHOLE
        )
        offsets = offsets + kv_head.to(tl.int64) * kv_head_stride
        places = offsets[:, None] + tl.arange(0, HEAD_DIM)[None, :]
        if IS_WHOLE:
            key, value = tl.load(keys + places), tl.load(values + places)
        else:
            key = tl.load(keys + places, mask=is_token, other=0.0)
            value = tl.load(values + places, mask=is_token, other=0.0)
    return key, value
