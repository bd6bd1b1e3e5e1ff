"""Decode attention over numbers and lengths of sequences, to see that no size is a cliff."""

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.attention.sequences import HEAD_DIM, Sequences

_NUM_HEADS, _NUM_KV_HEADS = 32, 8
_BLOCK_SIZE = 16
_NUMS_SEQS = (1, 4, 16, 64, 256, 512)
_SEQ_LENS = tuple(2**exponent for exponent in range(4, 18))
_MIXED = (16, 8192)
_MAX_TOKENS = 1 << 22
"""Of all sequences together: 16 GiB."""
_MAX_SETS = 64

TimeCalls = Callable[[list[Callable[[], Any]]], float]
"""Returns the milliseconds of one of some calls."""


def sweep_decode(time_ms: TimeCalls, cold_bytes: float) -> list[dict[str, Any]]:
    """Returns microseconds and bandwidth of each size, and of mixed lengths.

    Args:
        time_ms: Times calls, each on buffers of its own.
        cold_bytes: What buffers must exceed together, so that no call finds its own in a cache.
    """
    generator = random.Random(0)
    rows = []
    for num_seqs in _NUMS_SEQS:
        cases: list[tuple[int | str, list[int]]] = [
            (seq_len, [seq_len] * num_seqs)
            for seq_len in _SEQ_LENS
            if num_seqs * seq_len <= _MAX_TOKENS
        ]
        low, high = map(math.log, _MIXED)
        mixed = [round(math.exp(generator.uniform(low, high))) for _ in range(num_seqs)]
        for name, seq_lens in (*cases, ("mixed", mixed)):
            num_bytes = 4 * sum(seq_lens) * _NUM_KV_HEADS * HEAD_DIM
            queries = torch.randn(
                (num_seqs, _NUM_HEADS, HEAD_DIM), dtype=torch.bfloat16, device="cuda"
            )
            sets = [
                Sequences(seq_lens, _NUM_KV_HEADS, _BLOCK_SIZE)
                for _ in range(min(_MAX_SETS, 1 + int(cold_bytes / num_bytes)))
            ]
            ms = time_ms([partial(sequences.decode, queries) for sequences in sets])
            rows.append(
                {
                    "num_seqs": num_seqs,
                    "seq_len": name,
                    "num_tokens": sum(seq_lens),
                    "us": round(1e3 * ms, 2),
                    "tb_s": round(num_bytes / ms / 1e9, 3),
                }
            )
    return rows
