"""The comparisons of ways to compute attention, at small sizes, on the CPU."""

import json

import pytest
import torch

from benchmarks import decode_attention, prefill_attention
from benchmarks.attention import comparison
from benchmarks.attention.comparison import Target, compare

CPU = Target(device="cpu", dtype=torch.float32, tflop_s=1.0, tb_s=1.0)


@pytest.fixture(autouse=True)
def on_a_small_cpu(monkeypatch):
    monkeypatch.setattr(comparison, "find_target", lambda: CPU)
    monkeypatch.setattr(prefill_attention, "_SEQ_LENS", {"cpu": (64, 130)})
    monkeypatch.setattr(decode_attention, "_SEQ_LENS", {"cpu": (64,)})


@pytest.mark.parametrize(
    ("command", "ways"),
    [
        (
            prefill_attention,
            ["PyTorch", "naive Triton", "ours", "torch's best", "PyTorch", "ours", "torch's best"],
        ),
        (decode_attention, 2 * ["PyTorch, loop", "PyTorch", "ours"]),
    ],
    ids=["prefill", "decode"],
)
def test_each_way_is_right_and_what_needs_a_gpu_says_so(command, ways, tmp_path, capsys):
    command.main(["--output", str(tmp_path / "results.json"), "--commit", "abc"])

    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert [row["way"] for row in rows] == ways
    for row in rows:
        assert row["peak_mib"] is None if "ms" in row else row["left_out"] == "needs a GPU"
    assert results["command"] == f"python -m {command.__name__}"
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("without a GPU")
    assert len(printed) == 3 + len(rows)


def test_way_that_is_wrong_is_refused_before_it_is_timed():
    right = torch.ones(4)
    ways = {"right": lambda: right, "wrong": lambda: right + 1e-3}

    with pytest.raises(RuntimeError, match=r"wrong is wrong: relative error 0.001"):
        compare(ways, right, CPU)
