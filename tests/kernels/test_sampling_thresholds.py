import random

import pytest
import torch

from kernels import sampling_reference
from kernels import sampling_thresholds as thresholds_module
from kernels.sampling_thresholds import _sampling_thresholds_triton
from tests.kernels.sampling import COLUMNS, records_by_row
from tests.kernels.targets import in_float32, on_each_device


def check_kept(scores, records, slots):
    """Compares what kernel and twin keep, apart from scores at the very edge of a mass."""
    given = scores, records, slots, COLUMNS
    threshold = _sampling_thresholds_triton(*given)
    expected = sampling_reference.sampling_thresholds(*given)
    kept = scores.float() >= threshold[:, None]
    right = scores.float() >= expected[:, None]
    for row in (kept != right).any(1).nonzero().flatten().tolist():
        record = records[slots[row]]
        temperature, top_p = (
            float(sampling_reference.as_float(record[COLUMNS[name]]))
            for name in ("temperature", "top_p")
        )
        assert top_p < 1, row
        differing = (kept[row] != right[row]).nonzero().flatten()
        mass = (scores[row].double() / temperature).softmax(-1)[differing].sum()
        assert mass < 1e-5, (row, float(mass))
    return kept, right


def random_limits(num_rows, vocab_size, seed=0):
    choose = random.Random(seed)

    def each(*values):
        return torch.tensor([choose.choice(values) for _ in range(num_rows)])

    return records_by_row(
        num_rows,
        temperature=each(0.3, 1.0, 1.7, 0.0),
        top_k=each(0, -1, 1, 5, 40, vocab_size - 1, vocab_size, 2**31 - 1),
        top_p=each(1.0, 0.9, 0.3, 0.0, 0.999),
        min_p=each(0.0, 0.05, 0.5, 1.0),
    )


@on_each_device
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(24, 100), (8, 5000)])
def test_kernel_and_twin_keep_the_same(target, num_rows, vocab_size):
    scores = target.randn(num_rows, vocab_size) * 3
    records, slots = (x.to(target.device) for x in random_limits(num_rows, vocab_size))

    kept, _ = check_kept(scores, records, slots)

    assert kept.any(1).all()
    assert not kept.all(1).all()


@on_each_device
def test_candidates_and_whole_rows_give_the_same(target, monkeypatch):
    """Sharp rows have few candidates; flat ones, and ones of equal scores, are searched whole."""
    monkeypatch.setattr(thresholds_module, "_NUM_LIKELY", 32)
    scores = torch.cat(
        (target.randn(4, 6000) * 6, target.randn(4, 6000) * 0.1, target.randn(2, 6000) * 0)
    )
    for limits in ({"top_p": 0.8}, {"top_k": 90}, {"top_k": 90, "top_p": 0.5}, {"top_k": 30}):
        records, slots = records_by_row(10, target.device, **limits)
        kept, _ = check_kept(scores, records, slots)
        if limits == {"top_k": 30}:
            assert (kept.sum(1)[:4] >= 30).all()
            assert kept[-1].all()


@in_float32
def test_rows_that_are_no_distribution_or_greedy_keep_everything(target):
    scores = target.randn(5, 300)
    scores[0, 7] = torch.nan
    scores[1, 7] = torch.inf
    scores[2] = -torch.inf
    temperature = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    records, slots = records_by_row(
        5, target.device, temperature=temperature, top_k=3, top_p=0.5, min_p=0.1
    )
    for find in (_sampling_thresholds_triton, sampling_reference.sampling_thresholds):
        threshold = find(scores, records, slots, COLUMNS)
        assert (threshold[:4] == -torch.inf).all()
        assert threshold[4] > scores[4].min()


@in_float32
def test_equal_scores_stay_together_and_hidden_ones_never_return(target):
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0], [3.0, -torch.inf, -torch.inf, 2.0, 1.0]])
    scores = scores.to(target.device)
    records, slots = records_by_row(2, target.device, top_k=torch.tensor([2, 4]))
    for find in (_sampling_thresholds_triton, sampling_reference.sampling_thresholds):
        threshold = find(scores, records, slots, COLUMNS)
        assert threshold[0] == 2.0
        # Three remain, fewer than are asked for.
        assert (scores[1] >= threshold[1])[[0, 3, 4]].all()


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [151_936, 128_256, 32_003])
@pytest.mark.parametrize("num_rows", [1, 7, 64, 256])
def test_real_sizes_on_a_gpu(num_rows, vocab_size):
    for dtype in (torch.float32, torch.bfloat16):
        scores = (torch.randn(num_rows, vocab_size, device="cuda") * 2.5).to(dtype)
        records, slots = (x.to("cuda") for x in random_limits(num_rows, vocab_size, num_rows))
        check_kept(scores, records, slots)
        again = _sampling_thresholds_triton(scores, records, slots, COLUMNS)
        for _ in range(3):
            given = scores, records, slots, COLUMNS
            assert torch.equal(_sampling_thresholds_triton(*given), again)
