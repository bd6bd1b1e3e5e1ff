"""Decode attention of sequences that share a prefix: read for each, and read once."""

from functools import partial
from typing import Any

import torch

from benchmarks.attention.comparison import check
from benchmarks.attention.sequences import HEAD_DIM, SCALE, Sequences
from benchmarks.attention.sweep import TimeCalls
from kernels.paged_attention_decode import paged_attention_decode
from kernels.shared_prefix import MAX_MEMBERS, SharedPrefixes

_BLOCK_SIZE = 16
# (sequences, groups, shared tokens, own tokens, heads, key-value heads)
_SHAPES = (
    (256, 1, 2048, 96, 16, 8),
    (256, 1, 2048, 96, 32, 8),
    (256, 8, 2048, 96, 32, 8),
    (64, 1, 8192, 512, 32, 8),
    (16, 1, 512, 512, 32, 8),
    (16, 8, 512, 512, 32, 8),
)


def compare_prefixes(time_ms: TimeCalls) -> list[dict[str, Any]]:
    """Returns microseconds of both ways; the results are compared first.

    Args:
        time_ms: Times calls, each on buffers of its own.
    """
    return [_compare(time_ms, shape) for shape in _SHAPES]


def _compare(time_ms: TimeCalls, shape: tuple[int, int, int, int, int, int]) -> dict[str, Any]:
    num_seqs, num_groups, num_shared, num_own, num_heads, num_kv_heads = shape
    sequences = Sequences([num_shared + num_own] * num_seqs, num_kv_heads, _BLOCK_SIZE)
    shared = _share(sequences, num_groups, num_shared)
    queries = torch.randn((num_seqs, num_heads, HEAD_DIM), dtype=torch.bfloat16, device="cuda")

    def attend(prefixes: SharedPrefixes | None) -> torch.Tensor:
        return paged_attention_decode(
            queries,
            sequences.kv_cache,
            sequences.block_table,
            sequences.seq_lens,
            sequences.max_seq_len,
            SCALE,
            shared=prefixes,
            counters=sequences.counters,
            splits=sequences.splits if prefixes is None else None,
        )

    check(attend(shared), attend(None), "attention to shared prefixes")
    each, once = (time_ms([partial(attend, prefixes)]) for prefixes in (None, shared))
    return {
        "shape": list(shape),
        "each_us": round(1e3 * each, 2),
        "once_us": round(1e3 * once, 2),
        "times_faster": round(each / once, 2),
    }


def _share(sequences: Sequences, num_groups: int, num_tokens: int) -> SharedPrefixes:
    """Gives equal parts of the sequences the first blocks of their first one."""
    num_seqs = len(sequences.seq_lens)
    members = torch.arange(num_seqs, dtype=torch.int32, device="cuda")
    tiles = []
    for group in members.tensor_split(num_groups):
        table = sequences.block_table[group]
        table[:, : num_tokens // _BLOCK_SIZE] = table[:1, : num_tokens // _BLOCK_SIZE].clone()
        sequences.block_table[group] = table
        tiles += [(int(part[0]), len(part), num_tokens) for part in group.split(MAX_MEMBERS)]
    return SharedPrefixes(
        tiles=torch.tensor(tiles, dtype=torch.int32, device="cuda"),
        members=members,
        prefix_lens=torch.full_like(members, num_tokens),
    )
