"""Decode attention to a prefix that several sequences share: its keys are read once for all.

A program handles one tile of queries, the query heads of one key-value head of some sequences of a
group, over one split of the group's prefix. What it finds are further parts beside those of the
kernel that reads what each sequence has alone (`paged_attention_decode.py`). Both kernels run at
the same time: this one is bound by the matrix units, the other by memory. A third kernel combines
the parts.
Source: Hydragen (Juravsky et al., 2024), section 3.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.attention_parts import Parts, PartsMemory, combine, find_keys
from kernels.attention_tile import attend_to_keys
from kernels.checks import check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs

# Measured on an H200, bfloat16, head_dim 128, blocks of 64.
# With more, a short prefix takes longer, since there are more parts to combine. Measured with 8 to
# 16 splits of 1,024 and 8,192 tokens.
_MAX_SPLITS = 10
# More programs would leave no room for those that read what sequences have alone.
_PROGRAMS_PER_MULTIPROCESSOR = 1.25
_MAX_ROWS = 64
# Products of float32 take no matrix units, and many rows do not fit into registers.
_MAX_FLOAT32_ROWS = 16
_TILE = 64
_COMBINED_ELEMENTS = 2048
"""Of parts, read together by a warp."""

MAX_MEMBERS = 32
"""Sequences of a tile, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefixes:
    """Which sequences of a decode step share which prefix; the result does not depend on it.

    A sequence is in one group at most. Its first tokens are those of the group, in the same blocks.

    Attributes:
        tiles: [num_tiles, 3] int32. Each has some sequences of a group: where they begin in
            `members`; how many they are, at most `MAX_MEMBERS`, 0 if the tile is unused; and the
            tokens of the prefix, a multiple of the cache's block size.
        members: [at least the sum] int32, the sequences' places in the batch.
        prefix_lens: [num_seqs] int32, the tokens of each sequence's shared prefix, at most all;
            0 if it is in no group.
    """

    tiles: torch.Tensor
    members: torch.Tensor
    prefix_lens: torch.Tensor


def check_shared(shared: SharedPrefixes, num_seqs: int) -> None:
    """Refuses types and shapes that do not fit.

    Raises:
        ValueError: Names the tensor.
    """
    for name in ("tiles", "members", "prefix_lens"):
        check_dtype(name, getattr(shared, name), torch.int32)
    check_shape("tiles", shared.tiles, None, 3)
    if not len(shared.tiles):
        raise ValueError("tiles has 0 rows; expected at least 1")
    check_shape("members", shared.members, None)
    check_shape("prefix_lens", shared.prefix_lens, num_seqs)


def num_shared_splits(
    num_seqs: int, num_kv_heads: int, seqs_of_program: int, num_multiprocessors: int
) -> int:
    """Returns into how many parts a prefix that all sequences share is divided.

    As many as occupy a part of the GPU. If there are several prefixes, there are more programs.
    """
    num_pairs = -(-num_seqs // seqs_of_program) * num_kv_heads
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors / max(1, num_pairs)
    return max(1, min(int(wanted), _MAX_SPLITS))


def num_seqs_of_program(group: int, dtype: torch.dtype) -> int:
    """Returns how many sequences of a tile a program takes, with `group` query heads of each.

    With many query heads a key-value head, several programs divide a tile.
    """
    max_rows = _MAX_FLOAT32_ROWS if dtype == torch.float32 else _MAX_ROWS
    return min(MAX_MEMBERS, max(1, max_rows // group))


def attend_to_prefixes(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    shared: SharedPrefixes,
    scale: float,
    parts: Parts,
    memory: PartsMemory,
) -> None:
    """Writes the last `parts.num_shared` parts of the sequences that share a prefix.

    Args:
        queries: [num_seqs, num_heads, head_dim]
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]
        block_table: [num_seqs, max_blocks_per_seq]
        shared: Who shares what.
        scale: Multiplies the scores; includes log2(e).
        parts: Into how many parts a sequence and a prefix are divided.
        memory: Receives them; the logarithms of parts without a token are -inf.
    """
    _, num_heads, head_dim = queries.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    is_wide = queries.dtype == torch.float32 or head_dim > 128
    num_seqs = num_seqs_of_program(group, queries.dtype)
    num_programs = shared.tiles.shape[0] * triton.cdiv(MAX_MEMBERS, num_seqs)
    _shared_kernel[(num_programs, num_kv_heads, parts.num_shared)](
        queries,
        kv_cache,
        block_table,
        shared.tiles,
        shared.members,
        memory.partial,
        memory.log_totals,
        queries.stride(0),
        queries.stride(1),
        *kv_cache.stride()[:4],
        block_table.stride(0),
        parts.num_own + parts.num_shared,
        scale,
        GROUP=group,
        SEQS=num_seqs,
        SEQS_OF_TILE=MAX_MEMBERS,
        ROWS=max(16, triton.next_power_of_2(num_seqs * group)),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        TILE=32 if is_wide else _TILE,
        num_warps=4,
        num_stages=2 if is_wide else 3,
        **dependent_launch(queries),
    )


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_parts"],
    do_not_specialize_on_alignment=["block_table", "tiles", "members"],
)
def _shared_kernel(
    queries,
    kv_cache,
    block_table,
    tiles,
    members,
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
    SEQS: tl.constexpr,
    SEQS_OF_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    # All programs wait at once: the kernel behind this one relies on it, and hardly waits itself.
    wait_for_inputs(IS_DEPENDENT)
    PROGRAMS_OF_TILE: tl.constexpr = (SEQS_OF_TILE + SEQS - 1) // SEQS
    tile = tiles + tl.program_id(0) // PROGRAMS_OF_TILE * 3
    first_seq = tl.program_id(0) % PROGRAMS_OF_TILE * SEQS
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_members = tl.minimum(tl.load(tile + 1) - first_seq, SEQS)
    if num_members <= 0:
        return
    first_member = tl.load(tile) + first_seq
    prefix_len = tl.load(tile + 2)
    split_len = tl.cdiv(tl.cdiv(prefix_len, TILE), tl.num_programs(2)) * TILE
    start = split * split_len
    end = tl.minimum(start + split_len, prefix_len)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    is_row = rows < num_members * GROUP
    seqs = tl.load(members + first_member + rows // GROUP, mask=is_row, other=0).to(tl.int64)
    heads = kv_head * GROUP + rows % GROUP
    query = tl.load(
        queries
        + seqs[:, None] * query_seq_stride
        + heads[:, None] * query_head_stride
        + dims[None, :],
        mask=is_row[:, None],
        other=0.0,
    )  # [ROWS, HEAD_DIM]
    # All have the same blocks there.
    table = block_table + tl.load(members + first_member).to(tl.int64) * table_stride
    keys = kv_cache + kv_head * kv_head_stride
    mixed, log_total = attend_to_keys(
        query, keys, keys + half_stride, table,
        start, end, 0, block_stride, token_stride, scale,
        BLOCK_SIZE, HEAD_DIM, ROWS, TILE, 0, HAS_LONG_SPLITS=True,
    )  # fmt: skip
    places = (seqs * (tl.num_programs(1) * GROUP) + heads) * num_parts
    places += num_parts - tl.num_programs(2) + split
    tl.store(
        partial + places[:, None] * HEAD_DIM + dims[None, :],
        mixed,
        mask=is_row[:, None] & (start < end),
    )
    tl.store(log_totals + places, log_total, mask=is_row)


def combine_with_prefixes(
    out: torch.Tensor,
    seq_lens: torch.Tensor,
    shared: SharedPrefixes,
    num_kv_heads: int,
    own_tile: int,
    parts: Parts,
    memory: PartsMemory,
) -> None:
    """Combines all parts of the sequences that share a prefix.

    Args:
        out: [num_seqs, num_heads, head_dim], receives their rows.
        seq_lens: [num_seqs] int32.
        shared: Who shares what.
        num_kv_heads: Key-value heads.
        own_tile: Tokens of a tile of what each sequence reads alone.
        parts: Into how many parts a sequence and a prefix are divided.
        memory: Has the parts.
    """
    num_seqs, num_heads, head_dim = out.shape
    group = num_heads // num_kv_heads
    heads = triton.next_power_of_2(group)
    _combine_kernel[(num_kv_heads, num_seqs)](
        memory.partial,
        memory.log_totals,
        out,
        seq_lens,
        shared.prefix_lens,
        parts.num_own,
        parts.num_shared,
        GROUP=group,
        HEAD_DIM=head_dim,
        OWN_TILE=own_tile,
        AT_ONCE=max(1, _COMBINED_ELEMENTS // (heads * head_dim)),
        num_warps=1 if heads * head_dim <= _COMBINED_ELEMENTS else 4,
        **dependent_launch(out),
    )


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_own", "num_shared"],
    do_not_specialize_on_alignment=["seq_lens", "prefix_lens"],
)
def _combine_kernel(
    partial,
    log_totals,
    out,
    seq_lens,
    prefix_lens,
    num_own,
    num_shared,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    OWN_TILE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    seq = tl.program_id(1).to(tl.int64)
    seq_len = tl.load(seq_lens + seq, cache_modifier=".cg")
    prefix_len = tl.load(prefix_lens + seq, cache_modifier=".cg")
    _, _, _, num_used = find_keys(seq_len, prefix_len, 0, num_own, OWN_TILE, 0)
    wait_for_inputs(IS_DEPENDENT)
    if prefix_len == 0:
        return
    pair = seq * tl.num_programs(0) + tl.program_id(0)
    num_parts = num_own + num_shared
    combine(
        partial, log_totals, out, pair, num_used, num_shared, num_parts,
        pair * GROUP * num_parts, num_parts, 1, GROUP, HEAD_DIM, AT_ONCE,
    )  # fmt: skip
