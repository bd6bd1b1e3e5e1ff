"""Checks the kernels on a GPU, then times them: `python -m benchmarks.kernels`.

Times are of the GPU: the calls of one measurement run in a CUDA graph, each on buffers of its own
that together exceed the L2 cache, and the median of the replays counts. Attention beside naive ways
to compute it: `benchmarks.prefill_attention` and `benchmarks.decode_attention`.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.attention.comparison import check
from benchmarks.attention.prefixes import compare_prefixes
from benchmarks.attention.sequences import HEAD_DIM, Sequences
from benchmarks.attention.sweep import sweep_decode
from benchmarks.provenance import commit
from kernels.qk_norm_rope_store import qk_norm_rope_store
from kernels.rms_norm import add_rms_norm
from kernels.sample import sample
from kernels.silu_and_mul import silu_and_mul
from protos.wire.sampling_params import RECORD_COLUMNS, SamplingParams, to_record

DTYPE = torch.bfloat16
BLOCK_SIZES = (16, 64, 256)
# Three times the L2 cache of an H200.
COLD_BYTES = 180e6
COPY_TB_S = 4.3
MATRIX_TFLOP_S = 790

# (num_seqs, seq_len, num_heads, num_kv_heads) -> what others reach on an H200 with head_dim 128.
PREFILL_PEERS_TFLOP_S = {
    (8, 1024, 16, 8): {"FA3": 358, "cuDNN": 395, "FA2": 221},
    (4, 4096, 32, 8): {"FA3": 585, "cuDNN": 538, "FA2": 322},
    (1, 16384, 32, 8): {"FA3": 645, "cuDNN": 569, "FA2": 338},
}
# Blocks of 16 tokens.
DECODE_PEERS_MS = {
    (1, 4096, 32, 8): {"FA3": 0.0195, "vLLM Triton": 0.0312},
    (1, 32768, 32, 8): {"FA3": 0.0541, "vLLM Triton": 0.1793},
    (64, 4096, 32, 8): {"FA3": 0.2602, "vLLM Triton": 0.29},
    (256, 1024, 16, 8): {"FA3": 0.2815, "vLLM Triton": 0.2972},
}


def randn(*shape: int) -> torch.Tensor:
    """Draws a normal tensor on the GPU."""
    return torch.randn(*shape, dtype=DTYPE, device="cuda")


def time_ms(calls: list[Callable[[], Any]], repeats: int = 20) -> float:
    """Returns the milliseconds of one call, the median over replays of all in a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for repeat in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end) / len(calls))
    return sorted(times)[len(times) // 2]


def measure_prefill(block_size: int) -> list[dict[str, Any]]:
    """Returns a row for each prefill shape."""
    rows = []
    for (num_seqs, seq_len, num_heads, num_kv_heads), peers in PREFILL_PEERS_TFLOP_S.items():
        sequences = Sequences([seq_len] * num_seqs, num_kv_heads, block_size)
        inputs = [randn(num_seqs * seq_len, num_heads, HEAD_DIM) for _ in range(3)]
        by_head = inputs[0].unflatten(0, (num_seqs, seq_len)).transpose(1, 2)
        expected = sequences.by_library(by_head, is_causal=True).transpose(1, 2)
        check(sequences.prefill(inputs[0]), expected.flatten(0, 1), "prefill")
        ms = time_ms([partial(sequences.prefill, q) for q in inputs], repeats=10)
        tflop_s = 2 * num_seqs * seq_len**2 * num_heads * HEAD_DIM / ms / 1e9
        rows.append(
            {
                "shape": [num_seqs, seq_len, num_heads, num_kv_heads, HEAD_DIM],
                "block_size": block_size,
                "ms": round(ms, 4),
                "tflop_s": round(tflop_s, 1),
                "share_of_limit": round(tflop_s / MATRIX_TFLOP_S, 3),
                "peers_tflop_s": peers,
            }
        )
    return rows


def measure_decode(block_size: int) -> list[dict[str, Any]]:
    """Returns a row for each decode shape."""
    rows = []
    for (num_seqs, seq_len, num_heads, num_kv_heads), peers in DECODE_PEERS_MS.items():
        num_bytes = 4 * num_seqs * seq_len * num_kv_heads * HEAD_DIM
        sets = [
            Sequences([seq_len] * num_seqs, num_kv_heads, block_size)
            for _ in range(1 + int(COLD_BYTES / num_bytes))
        ]
        queries = randn(num_seqs, num_heads, HEAD_DIM)
        expected = sets[0].by_library(queries[:, :, None], is_causal=False)[:, :, 0]
        check(sets[0].decode(queries), expected, "decode")
        ms = time_ms([partial(s.decode, queries) for s in sets])
        tb_s = num_bytes / ms / 1e9
        rows.append(
            {
                "shape": [num_seqs, seq_len, num_heads, num_kv_heads, HEAD_DIM],
                "block_size": block_size,
                "ms": round(ms, 4),
                "tb_s": round(tb_s, 2),
                "share_of_limit": round(tb_s / COPY_TB_S, 3),
                "peers_ms": peers,
            }
        )
    return rows


def measure_elementwise() -> list[dict[str, Any]]:
    """Returns a row for each other kernel and number of rows, in the sizes of Qwen3-8B."""
    hidden, intermediate, num_heads, num_kv_heads, vocab_size = 4096, 12288, 32, 8, 151_936
    packed = (num_heads + 2 * num_kv_heads) * HEAD_DIM
    weight, head_weight = randn(hidden), randn(HEAD_DIM)
    cos_sin = torch.randn(4096, HEAD_DIM, device="cuda")
    record = to_record(SamplingParams(temperature=1.0), seed=7)
    rows = []
    for num_rows in (1, 64, 256, 4096):
        indices = torch.arange(num_rows, device="cuda")
        records = torch.tensor([list(record)] * num_rows, device="cuda")
        kv_cache = randn(2, triton.cdiv(num_rows, 64), num_kv_heads, 64, HEAD_DIM)

        store = partial(
            qk_norm_rope_store,
            q_weight=head_weight,
            k_weight=head_weight,
            eps=1e-6,
            cos_sin=cos_sin,
            positions=indices,
            cache_locs=indices,
            kv_cache=kv_cache,
            num_heads=num_heads,
        )
        draw = partial(
            sample, records=records, slots=indices, positions=indices, columns=RECORD_COLUMNS
        )
        operations: list[tuple[str, Callable[[torch.Tensor], Any], int, int]] = [
            ("add_rms_norm", lambda x: add_rms_norm(x, x, weight, 1e-6), hidden, 3 * hidden),
            ("silu_and_mul", silu_and_mul, 2 * intermediate, 3 * intermediate),
            ("qk_norm_rope_store", store, packed, 2 * packed),
        ]
        if num_rows <= 256:
            operations.append(("sample", draw, vocab_size, vocab_size))
        for name, operation, width, elements in operations:
            num_bytes = 2 * num_rows * elements
            count = min(1 + int(COLD_BYTES / num_bytes), 400)
            inputs = randn(count, num_rows, width).unbind(0)
            ms = time_ms([partial(operation, x) for x in inputs])
            rows.append(
                {
                    "kernel": name,
                    "num_rows": num_rows,
                    "us": round(ms * 1e3, 2),
                    "tb_s": round(num_bytes / ms / 1e9, 3),
                }
            )
    return rows


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows of equal keys."""
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(f"{name}={value}" for name, value in row.items()))


def main() -> None:
    """Measures, prints, and writes one JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__.split("\n")[0] if __doc__ else None,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/h200/kernels.json"),
        help="JSON file for the results (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "command": "python -m benchmarks.kernels",
        "commit": options.commit,
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "dtype": "bfloat16",
        "prefill": [row for size in BLOCK_SIZES for row in measure_prefill(size)],
        "decode": [row for size in BLOCK_SIZES for row in measure_decode(size)],
        "others": measure_elementwise(),
        "decode of shared prefixes": compare_prefixes(time_ms),
        "decode sweep": sweep_decode(time_ms, COLD_BYTES),
    }
    for title, rows in result.items():
        if isinstance(rows, list):
            print_table(title, rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
