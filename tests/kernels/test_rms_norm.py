import pytest
import torch

from kernels import reference
from kernels.rms_norm import _add_rms_norm_triton, _rms_norm_triton, add_rms_norm, rms_norm
from tests.kernels.targets import on_each_target, worst_row_error

SHAPES = [(1, 64), (3, 100), (63, 1000), (100, 1), (2, 4096)]


def norm_in_float64(x, weight, eps):
    return x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@on_each_target
@pytest.mark.parametrize(("num_tokens", "hidden"), SHAPES)
def test_rms_norm_is_its_definition(target, num_tokens, hidden):
    x, weight = target.randn(num_tokens, hidden), target.randn(hidden)
    truth = norm_in_float64(x, weight, 1e-6)
    for norm in (_rms_norm_triton, reference.rms_norm):
        assert worst_row_error(norm(x, weight, 1e-6), truth) < target.tolerance


@on_each_target
@pytest.mark.parametrize(("num_tokens", "hidden"), SHAPES)
def test_add_rms_norm_returns_the_sum_and_its_norm(target, num_tokens, hidden):
    x, residual = target.randn(num_tokens, hidden), target.randn(num_tokens, hidden)
    weight = target.randn(hidden)
    for norm in (_add_rms_norm_triton, reference.add_rms_norm):
        out, new_residual = norm(x, residual, weight, 1e-6)
        assert torch.equal(new_residual, x + residual)
        assert worst_row_error(out, norm_in_float64(x + residual, weight, 1e-6)) < target.tolerance


@on_each_target
def test_quotient_is_rounded_before_the_weight_as_in_transformers(target):
    # Rounding once at the end instead moves half of the elements by their last bit.
    x, weight = target.randn(64, 256), target.randn(256)
    wide = x.float()
    quotient = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(target.dtype)
    expected = weight * quotient
    for norm in (_rms_norm_triton, reference.rms_norm):
        is_equal = norm(x, weight, 1e-6) == expected
        assert is_equal.float().mean() > (0.5 if target.dtype == torch.float32 else 0.99)


@on_each_target
def test_rows_may_be_strided(target):
    wide = target.randn(5, 300)
    x, residual, weight = wide[:, :100], wide[:, 100:200], target.randn(100)
    out, new_residual = _add_rms_norm_triton(x, residual, weight, 1e-5)
    expected, expected_residual = reference.add_rms_norm(x, residual, weight, 1e-5)
    assert worst_row_error(out, expected) < target.tolerance
    assert torch.equal(new_residual, expected_residual)


@on_each_target
def test_no_tokens_give_no_rows(target):
    x, weight = target.randn(0, 64), target.randn(64)
    assert _rms_norm_triton(x, weight, 1e-6).shape == (0, 64)
    assert [out.shape for out in _add_rms_norm_triton(x, x, weight, 1e-6)] == [(0, 64), (0, 64)]


@on_each_target
def test_public_functions_agree_with_the_twins(target):
    x, residual, weight = target.randn(3, 100), target.randn(3, 100), target.randn(100)
    assert worst_row_error(rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6)) < (
        target.tolerance
    )
    out, _ = add_rms_norm(x, residual, weight, 1e-6)
    expected, _ = reference.add_rms_norm(x, residual, weight, 1e-6)
    assert worst_row_error(out, expected) < target.tolerance


def test_wrong_tensors_are_refused_by_name_and_value():
    x, weight = torch.randn(2, 8), torch.randn(8)
    with pytest.raises(ValueError, match=r"weight has shape \(7,\); expected \(8\)"):
        rms_norm(x, torch.randn(7), 1e-6)
    with pytest.raises(ValueError, match=r"x has dtype torch.float64"):
        rms_norm(x.double(), weight, 1e-6)
    with pytest.raises(ValueError, match=r"x has stride 2 in its last dimension"):
        rms_norm(x[:, ::2], weight, 1e-6)
    with pytest.raises(ValueError, match=r"residual has shape \(1, 8\); expected \(2, 8\)"):
        add_rms_norm(x, x[:1], weight, 1e-6)
    with pytest.raises(ValueError, match=r"hidden is 0"):
        rms_norm(x[:, :0], weight[:0], 1e-6)
