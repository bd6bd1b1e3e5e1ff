"""Ways to compute decode's attention over a paged cache: `python -m benchmarks.decode_attention`.

One sequence after the other in PyTorch (loop), all at once in PyTorch (vectorised: the kernel's
twin), and the Triton kernel (ours). Each is checked before it is timed. The bytes are those of all
keys and values once; the share is of what a copy in memory reaches here.
"""

import sys
from functools import partial

import torch

from benchmarks.attention.comparison import Row, Target, Way, compare, run_command
from benchmarks.attention.naive import decode_by_torch_loop
from benchmarks.attention.sequences import HEAD_DIM, SCALE, Sequences
from kernels import reference

_NUM_HEADS, _NUM_KV_HEADS = 32, 8
_BLOCK_SIZE = 16
_NUMS_SEQS = {"cuda": (1, 8, 64, 256), "cpu": (1, 8)}
_SEQ_LENS = {"cuda": (128, 1024, 8192, 32_768), "cpu": (64, 512)}
_MAX_TOKENS = 1 << 20
"""Of all sequences together: 4 GiB of bfloat16."""


def measure(target: Target) -> list[Row]:
    """Returns a row for each number of sequences, length and way."""
    return [
        row
        for num_seqs in _NUMS_SEQS[target.device]
        for seq_len in _SEQ_LENS[target.device]
        if num_seqs * seq_len <= _MAX_TOKENS
        for row in _measure(num_seqs, seq_len, target)
    ]


def _measure(num_seqs: int, seq_len: int, target: Target) -> list[Row]:
    lengths = [seq_len] * num_seqs
    sequences = Sequences(lengths, _NUM_KV_HEADS, _BLOCK_SIZE, target.device, target.dtype)
    shape = (num_seqs, _NUM_HEADS, HEAD_DIM)
    queries = torch.randn(shape, device=target.device, dtype=target.dtype)
    cache, table = sequences.kv_cache, sequences.block_table
    by_twin = partial(
        reference.paged_attention_decode,
        queries,
        cache,
        table,
        sequences.seq_lens,
        seq_len,
        SCALE,
    )
    ways: dict[str, Way | None] = {
        "PyTorch, loop": partial(decode_by_torch_loop, queries, cache, table, lengths, SCALE),
        "PyTorch": by_twin,
        "ours": partial(sequences.decode, queries) if target.is_gpu else None,
    }
    num_bytes = 2 * num_seqs * seq_len * _NUM_KV_HEADS * HEAD_DIM * target.dtype.itemsize
    expected = sequences.by_library(queries[:, :, None], is_causal=False)[:, :, 0]
    return [
        {"num_seqs": num_seqs, "seq_len": seq_len, **row, **_rate(row, num_bytes, target)}
        for row in compare(ways, expected, target)
    ]


def _rate(row: Row, num_bytes: int, target: Target) -> Row:
    if "ms" not in row:
        return {}
    tb_s = num_bytes / row["ms"] / 1e9
    return {"tb_s": round(tb_s, 4), "share": round(tb_s / target.tb_s, 3)}


def main(arguments: list[str]) -> None:
    """Runs the command."""
    run_command("benchmarks.decode_attention", __doc__ or "", measure, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
