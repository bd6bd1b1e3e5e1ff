"""The benchmark of several ranks: what it measures on a CPU, and the table that it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tensor_parallel import table

ROOT = Path(__file__).parents[2]
SECONDS = 110


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.tensor_parallel", "--models", "tiny", *arguments],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_two_ranks_are_measured_beside_one_and_written(tmp_path):
    output = tmp_path / "results.json"
    arguments = ["--quick", "--starts", "1", "--repeats", "1", "--commit", "abc"]

    done = run(*arguments, "--workloads", "decode_b1", "prefill", "--output", str(output))

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["commit"] == "abc"
    assert results["command"].startswith("python -m benchmarks.tensor_parallel --models tiny")
    assert ", torch " in results["machine"]
    figures = results["figures"]["tiny"]
    assert list(figures) == ["1", "2"]
    for found in figures.values():
        assert list(found) == ["decode_b1", "prefill", "seconds_to_ready"]
        assert min(found.values()) > 0
    assert "| tiny decode_b1 |" in done.stdout
    assert "ranks" not in results["details"]["tiny"]["1"]["decode_b1"]
    for workload in ("decode_b1", "prefill"):
        ranks = results["details"]["tiny"]["2"][workload]["ranks"]
        assert list(ranks) == ["0", "1"]
        for rank in ranks.values():
            assert min(rank.values()) > 0
            assert list(rank) == ["mean_lag_us", "memory_bytes", "mean_collective_us"]


@pytest.mark.slow
def test_engine_that_does_not_start_ends_the_benchmark():
    done = run("--quick", "--starts", "1", "--ranks", "3")

    assert done.returncode == 1
    assert "num_key_value_heads is 2, no multiple and no divisor of it" in done.stderr
    assert "tiny with 3 ranks failed, see above" in done.stderr


def test_table_compares_two_ranks_with_what_is_known():
    figures = {
        "qwen3-8b": {
            1: {"decode_b1": 200, "seconds_to_ready": 10.5},
            2: {"decode_b1": 300, "seconds_to_ready": 21.0},
        },
        "qwen3-32b": {2: {"prefill": 17_000}},
    }

    assert table(figures).splitlines() == [
        "| tokens/s | N = 1 | N = 2 | N = 2 over 1 | vLLM 0.24.0 | bar | goal | limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| qwen3-8b decode_b1 | 200 | 300 | 1.50 | 262 (yes) | 300 (yes) | 370 (no) | 468 |",
        "| qwen3-8b seconds_to_ready | 10.5 | 21.0 | 2.00 | 80 (yes) | 25 (yes) | 12 (no) |  |",
        "| qwen3-32b prefill |  | 17,000 |  | 17,145 (no) | 18,000 (no) | 19,500 (no) | 21,650 |",
    ]


def test_table_of_one_rank_reaches_and_misses_nothing():
    [*_, row] = table({"qwen3-8b": {1: {"prefill": 90_000}}}).splitlines()

    assert row == "| qwen3-8b prefill | 90,000 | 1.00 | 68,550 | 72,000 | 82,000 | 95,600 |"
