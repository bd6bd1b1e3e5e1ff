import pytest
import torch

from kernels import sampling_reference
from kernels.logprobs import _token_logprobs_triton, token_logprobs
from tests.kernels.targets import on_each_device


def check(logits, token_ids, num_top):
    logprobs, top_ids, top_logprobs = _token_logprobs_triton(logits, token_ids, num_top)
    right, right_ids, right_tops = sampling_reference.token_logprobs(logits, token_ids, num_top)
    torch.testing.assert_close(logprobs, right, rtol=1e-5, atol=1e-5)
    assert torch.equal(top_ids, right_ids)
    torch.testing.assert_close(top_logprobs, right_tops, rtol=1e-5, atol=1e-5)


@on_each_device
@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "num_top"), [(3, 100, 5), (2, 5000, 20), (1, 4097, 0), (2, 70, 70)]
)
def test_kernel_and_twin_give_the_same(target, num_rows, vocab_size, num_top):
    logits = target.randn(num_rows, vocab_size) * 4
    token_ids = torch.randint(0, vocab_size, (num_rows,)).to(target.device)
    check(logits, token_ids, num_top)


@on_each_device
def test_of_equal_logits_the_first_tokens_are_listed(target):
    """More candidates than there is room for."""
    logits = target.randn(2, 5000) * 0
    logits[1, 4000] = 1.0
    token_ids = torch.tensor([3, 4000], device=target.device)
    check(logits, token_ids, 4)
    _, top_ids, _ = _token_logprobs_triton(logits, token_ids, 4)
    assert top_ids.tolist() == [[0, 1, 2, 3], [4000, 0, 1, 2]]


@on_each_device
def test_hidden_tokens_have_no_probability(target):
    logits = target.randn(1, 300)
    logits[0, 10:] = -torch.inf
    check(logits, torch.tensor([2], device=target.device), 20)


def test_more_than_the_vocabulary_cannot_be_listed():
    with pytest.raises(ValueError, match="num_top is 11; expected 0 to 10"):
        token_logprobs(torch.zeros(1, 10), torch.zeros(1).long(), 11)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [151_936, 128_256, 32_003])
@pytest.mark.parametrize("num_rows", [1, 64, 256])
@pytest.mark.parametrize("num_top", [0, 1, 20, 100])
def test_real_sizes_on_a_gpu(num_rows, vocab_size, num_top):
    for dtype in (torch.float32, torch.bfloat16):
        logits = (torch.randn(num_rows, vocab_size, device="cuda") * 2.5).to(dtype)
        token_ids = torch.randint(0, vocab_size, (num_rows,), device="cuda")
        check(logits, token_ids, num_top)
