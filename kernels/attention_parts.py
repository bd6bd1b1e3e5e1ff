"""Decode attention divided along the keys: who reads which, and how the parts become one.

Each program of a sequence and key-value head reads one split and leaves its part in memory. The
program that ends last combines the parts, in their order: the sum does not depend on who that is.
If the sequence shares a prefix, another kernel combines them (`shared_prefix.py`).
All sequences have equally many splits, unless a plan gives the longer ones more
(`decode_splits.py`).
Sources: Flash-Decoding (Dao et al., 2023); CUDA programming guide, "Memory Fence Functions".
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.attention_tile import nothing_seen
from kernels.gpu import num_multiprocessors

_MAX_SPLITS = 64
# Measured on an H200, bfloat16, head_dim 128.
_MIN_SPLIT_TOKENS = 64
_PROGRAMS_PER_MULTIPROCESSOR = 4
# Smaller tiles than these fill the matrix instruction no better, larger ones leave room for fewer
# programs at a time.
_TILE = 32
# Behind a prefix, if nothing is divided: 256 sequences with 64 to 128 tokens of their own are 3 to
# 6 % faster than with two warps. With 4 query heads, they are 3 % slower. The host does not know
# whether they are short.
_MAX_GROUP_OF_WARP = 2
_NUM_STAGES = 3
# Elements of parts that a program reads at a time: half of its registers, with two warps.
_COMBINED_AT_ONCE = 8192
# Each pair of a sequence and a head has one if it may be divided.
_NUM_COUNTERS = 8192


class Parts(NamedTuple):
    """Into how many parts, which are combined, the tokens of sequences are divided."""

    num_own: int
    """Splits of the tokens that each sequence reads alone; 1 if planned."""
    num_shared: int = 0
    """Splits of a prefix that it shares; 0 if no sequence does."""
    num_further: int = 0
    """Splits beyond one for each sequence, if planned; otherwise 0."""


def count_splits(num_pairs: int, max_seq_len: int, num_processors: int) -> int:
    """Returns the number of splits of the keys of each of num_pairs (sequence, head).

    As many as occupy the GPU, while each split still has enough to read to be worth its start.
    """
    if num_pairs > _NUM_COUNTERS:
        return 1
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_processors // max(num_pairs, 1)
    return max(1, min(wanted, -(-max_seq_len // _MIN_SPLIT_TOKENS), _MAX_SPLITS))


def num_further_splits(
    num_seqs: int, num_kv_heads: int, max_seq_len: int, num_processors: int
) -> int:
    """Returns how many splits sequences of different lengths have in all, beyond one for each.

    As many as occupy the GPU; 0 if none is long, or if there are more pairs of a sequence and a
    head than counters.
    """
    if max_seq_len <= _MIN_SPLIT_TOKENS or num_seqs * num_kv_heads > _NUM_COUNTERS:
        return 0
    return max(1, _PROGRAMS_PER_MULTIPROCESSOR * num_processors // num_kv_heads)


def own_splits(kv_cache: torch.Tensor, num_seqs: int, max_seq_len: int, window: int) -> int:
    """Returns the number of splits of what each sequence reads alone, on the cache's device."""
    num_pairs = num_seqs * kv_cache.shape[2]
    processors = num_multiprocessors(kv_cache.device)
    return count_splits(num_pairs, tokens_read(max_seq_len, window), processors)


def tokens_read(max_seq_len: int, window: int) -> int:
    """Returns an upper bound of the tokens that a query reads, its window's tiles being whole."""
    return min(max_seq_len, window + _TILE) if window else max_seq_len


class PartsMemory(NamedTuple):
    """Where programs leave their parts; all None if there are none."""

    partial: torch.Tensor | None = None
    """[num_seqs, num_heads, num_parts, head_dim] float32, what is mixed; with further splits,
    [num_seqs + num_further, num_heads, head_dim], where those of a sequence follow each other."""
    log_totals: torch.Tensor | None = None
    """The same without head_dim: the logarithms of the sums of weights, base 2."""
    counters: torch.Tensor | None = None
    """[at least num_seqs * num_kv_heads] int32, how many programs have left theirs; None if no
    sequence has several splits of its own."""


def make_counters(device: torch.device) -> torch.Tensor:
    """Returns counters for launches that do not overlap, [_NUM_COUNTERS] int32, all 0."""
    return torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)


def allocate_parts(
    parts: Parts,
    num_seqs: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    device: torch.device,
    counters: torch.Tensor | None,
) -> PartsMemory:
    """Returns the memory for the parts of a launch, which leaves the counters at zero.

    Raises:
        ValueError: there are fewer counters than pairs of a sequence and a head that are divided
    """
    num_own = parts.num_own + parts.num_further
    if num_own + parts.num_shared == 1:
        return PartsMemory()
    num_pairs = num_seqs * num_kv_heads
    if num_own == 1:
        counters = None
    elif counters is None:
        counters = torch.zeros(num_pairs, dtype=torch.int32, device=device)
    elif len(counters) < num_pairs:
        raise ValueError(f"counters has {len(counters)} elements; expected at least {num_pairs}")
    shape: tuple[int, ...] = (num_seqs, num_heads, parts.num_own + parts.num_shared)
    if parts.num_further:
        shape = (num_seqs + parts.num_further, num_heads)
    return PartsMemory(
        torch.empty((*shape, head_dim), dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        counters,
    )


def launch_arguments(
    kv_cache: torch.Tensor, num_heads: int, window: int, parts: Parts
) -> dict[str, int]:
    """Returns how the kernel is compiled that calls the functions below."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    group = num_heads // num_kv_heads
    is_wide = kv_cache.dtype == torch.float32 or head_dim > 128
    is_behind_prefix = parts.num_shared > 0 and parts.num_own == 1
    return {
        "GROUP": group,
        "ROWS": max(16, triton.next_power_of_2(group)),
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "TILE": _TILE,
        "WINDOW": window,
        "AT_ONCE": max(1, _COMBINED_AT_ONCE // (triton.next_power_of_2(group) * head_dim)),
        "num_warps": 1 if is_behind_prefix and not is_wide and group <= _MAX_GROUP_OF_WARP else 2,
        "num_stages": _NUM_STAGES,
    }


@triton.jit
def find_keys(
    seq_len, prefix_len, split, num_splits, TILE: tl.constexpr, WINDOW: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Returns which keys a split's query sees, and into how many splits all are divided.

    The first of all, and of this split's the first and the end; then the number of splits that have
    keys, or 1. The programs of the others have nothing to do. Tiles begin where the prefix ends;
    prefix_len is 0 without a shared prefix.
    """
    first_seen = 0
    first = prefix_len
    if WINDOW > 0:
        first_seen = tl.maximum(seq_len - WINDOW, 0)
        first = first_seen // TILE * TILE
    num_tiles = tl.cdiv(seq_len - first, TILE)
    split_tiles = tl.maximum(tl.cdiv(num_tiles, num_splits), 1)
    start = first + split * split_tiles * TILE
    end = tl.minimum(start + split_tiles * TILE, seq_len)
    return first_seen, start, end, tl.maximum(tl.cdiv(num_tiles, split_tiles), 1)


@triton.jit
def end_part(
    mixed,
    log_total,
    partial,
    log_totals,
    counters,
    out,
    pair,
    split,
    seq_len,
    num_used,
    is_shared,
    first_place,
    head_stride,
    part_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
    KEEPS_EMPTY: tl.constexpr,
) -> None:
    """Stores what a program found, [ROWS, HEAD_DIM] and [ROWS], of GROUP heads.

    The program that comes last of the num_used stores the result of all, unless parts of a shared
    prefix must be added, too. Without memory for parts there is one program. The place of the first
    head's first part is first_place, the others' are the strides away.
    """
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    is_row = rows < GROUP
    if partial is None or (num_used == 1 and not is_shared):
        _store_out(mixed, out, pair, seq_len, rows, dims, GROUP, HEAD_DIM, KEEPS_EMPTY)
    else:
        places = first_place + rows * head_stride + split * part_stride
        tl.store(partial + places[:, None] * HEAD_DIM + dims[None, :], mixed, mask=is_row[:, None])
        tl.store(log_totals + places, log_total, mask=is_row)
        if counters is not None and not is_shared:
            # One thread counts, for the stores of all.
            tl.debug_barrier()
            num_before = tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu")
            if num_before == num_used - 1:
                tl.debug_barrier()
                tl.store(counters + pair, 0)
                combine(
                    partial, log_totals, out, pair, num_used, 0, 0,
                    first_place, head_stride, part_stride, GROUP, HEAD_DIM, AT_ONCE,
                )  # fmt: skip


@triton.jit
def _store_out(
    mixed,
    out,
    pair,
    seq_len,
    rows,
    dims,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KEEPS_EMPTY: tl.constexpr,
):
    is_stored = rows < GROUP
    if KEEPS_EMPTY:
        is_stored = is_stored & (seq_len > 0)
    places = pair * GROUP + rows
    tl.store(
        out + places[:, None] * HEAD_DIM + dims[None, :],
        mixed.to(out.dtype.element_ty),
        mask=is_stored[:, None],
    )


@triton.jit
def combine(
    partial,
    log_totals,
    out,
    pair,
    num_own,
    num_shared,
    num_parts,
    first_place,
    head_stride,
    part_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """Combines the parts of a sequence's key-value head, and stores the result.

    Args:
        partial: as of `PartsMemory`
        log_totals: likewise
        out: [num_seqs, num_heads, HEAD_DIM]
        pair: index of the sequence and the head
        num_own: the first parts, at least 1
        num_shared: the last parts, those of the prefix
        num_parts: places of all; unused without a prefix
        first_place: of the first head's first part
        head_stride: from there to the same of the next head
        part_stride: from one part to the next
        GROUP: query heads
        HEAD_DIM: elements of a head
        AT_ONCE: parts that are read together
    """
    HEADS: tl.constexpr = triton.next_power_of_2(GROUP)
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, HEAD_DIM)
    is_head = heads < GROUP
    maximum, total, mixed = nothing_seen(HEADS, HEAD_DIM)
    for first in range(0, num_own + num_shared, AT_ONCE):
        indices = first + tl.arange(0, AT_ONCE)
        is_part = is_head[:, None] & (indices < num_own + num_shared)[None, :]
        # Between the two lie the places of splits without keys.
        indices += tl.where(indices < num_own, 0, num_parts - num_shared - num_own)
        places = first_place + (heads * head_stride)[:, None] + indices[None, :] * part_stride
        logs = tl.load(log_totals + places, mask=is_part, other=float("-inf"))
        parts = tl.load(
            partial + places[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=is_part[:, :, None],
            other=0.0,
        )  # [heads, AT_ONCE, HEAD_DIM]
        # What lies in a part of a prefix without keys is unwritten, and 0 * NaN is NaN.
        parts = tl.where((logs > float("-inf"))[:, :, None], parts, 0.0)
        new_maximum = tl.maximum(maximum, tl.max(logs, axis=1))
        # -inf - -inf is NaN.
        base = tl.where(new_maximum > float("-inf"), new_maximum, 0.0)
        weights = tl.exp2(logs - base[:, None])
        correction = tl.exp2(maximum - base)
        total = total * correction + tl.sum(weights, axis=1)
        mixed = mixed * correction[:, None] + tl.sum(parts * weights[:, :, None], axis=1)
        maximum = new_maximum
    mixed /= tl.where(is_head & (total > 0.0), total, 1.0)[:, None]
    tl.store(
        out + (pair * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :],
        mixed.to(out.dtype.element_ty),
        mask=is_head[:, None],
    )
