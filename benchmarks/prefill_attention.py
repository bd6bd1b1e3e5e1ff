"""Ways to compute a prompt's attention: `python -m benchmarks.prefill_attention`.

The scores of all pairs of tokens in memory (PyTorch, standard), a program per query that reads its
keys one tile after the other (naive Triton, for up to 128 tokens), flash attention over a paged
cache (ours), and torch's best. Each is checked before it is timed. Operations are those below the
diagonal; the share is of what a product of large matrices reaches here.
"""

import sys
from functools import partial

import torch

from benchmarks.attention.comparison import Row, Target, Way, compare, run_command
from benchmarks.attention.naive import attention_by_naive_triton, attention_by_torch
from benchmarks.attention.sequences import HEAD_DIM, SCALE, Sequences, attend_by_library

_NUM_HEADS, _NUM_KV_HEADS = 32, 8
_BLOCK_SIZE = 64
_MAX_NAIVE_TOKENS = 128
_NUM_TOKENS = {"cuda": 16_384, "cpu": 512}
"""Tokens of all sequences together; a longer one is alone."""
_SEQ_LENS = {
    "cuda": (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768),
    "cpu": (64, 128, 256, 512),
}


def measure(target: Target) -> list[Row]:
    """Returns a row for each length and way."""
    return [row for seq_len in _SEQ_LENS[target.device] for row in _measure(seq_len, target)]


def _measure(seq_len: int, target: Target) -> list[Row]:
    num_seqs = max(1, _NUM_TOKENS[target.device] // seq_len)
    lengths = [seq_len] * num_seqs
    sequences = Sequences(lengths, _NUM_KV_HEADS, _BLOCK_SIZE, target.device, target.dtype)
    shape = (num_seqs, _NUM_HEADS, seq_len, HEAD_DIM)
    queries = torch.randn(shape, device=target.device, dtype=target.dtype)
    keys, values = sequences.contiguous()
    flat = queries.transpose(1, 2).flatten(0, 1)
    naive = partial(attention_by_naive_triton, queries, keys, values, SCALE)
    ways: dict[str, Way | None] = {
        "PyTorch": partial(attention_by_torch, queries, keys, values, SCALE),
        "naive Triton": naive if target.is_gpu else None,
        "ours": partial(_by_head, sequences, flat),
        "torch's best": partial(attend_by_library, queries, keys, values, is_causal=True),
    }
    if seq_len > _MAX_NAIVE_TOKENS:
        del ways["naive Triton"]
    num_operations = 2 * num_seqs * seq_len * (seq_len + 1) * _NUM_HEADS * HEAD_DIM
    expected = attend_by_library(queries, keys, values, is_causal=True)
    return [
        {"num_seqs": num_seqs, "seq_len": seq_len, **row, **_rate(row, num_operations, target)}
        for row in compare(ways, expected, target)
    ]


def _by_head(sequences: Sequences, flat: torch.Tensor) -> torch.Tensor:
    """Runs our prefill; returns a view [num_seqs, num_heads, seq_len, HEAD_DIM]."""
    return sequences.prefill(flat).unflatten(0, (-1, sequences.max_seq_len)).transpose(1, 2)


def _rate(row: Row, num_operations: int, target: Target) -> Row:
    if "ms" not in row:
        return {}
    tflop_s = num_operations / row["ms"] / 1e9
    return {"tflop_s": round(tflop_s, 3), "share": round(tflop_s / target.tflop_s, 3)}


def main(arguments: list[str]) -> None:
    """Runs the command."""
    run_command("benchmarks.prefill_attention", __doc__ or "", measure, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
