import pytest
import torch

from kernels import reference
from kernels.silu_and_mul import _silu_and_mul_triton, silu_and_mul
from tests.kernels.targets import on_each_target, worst_row_error


@on_each_target
@pytest.mark.parametrize(("num_tokens", "intermediate"), [(1, 64), (63, 100), (3, 3000), (100, 1)])
def test_silu_and_mul_is_its_definition(target, num_tokens, intermediate):
    x = target.randn(num_tokens, 2 * intermediate) * 4
    gate, up = x.double().chunk(2, dim=-1)
    truth = gate / (1 + torch.exp(-gate)) * up
    for activate in (_silu_and_mul_triton, reference.silu_and_mul, silu_and_mul):
        assert worst_row_error(activate(x), truth) < target.tolerance


@on_each_target
def test_rows_may_be_strided(target):
    x = target.randn(5, 300)[:, 40:240]
    assert worst_row_error(_silu_and_mul_triton(x), reference.silu_and_mul(x)) < target.tolerance


@on_each_target
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's numpy
def test_large_gates_do_not_overflow(target):
    x = torch.tensor([[-100.0, 100.0, -60000.0, 60000.0, 1.0, 1.0, 1.0, 1.0]])
    out = _silu_and_mul_triton(x.to(target.device, target.dtype)).float().cpu()
    assert out[0, 0].abs() < 1e-30
    assert out[0, 2] == 0
    torch.testing.assert_close(out[0, 1::2], torch.tensor([100.0, 60000.0]), rtol=0.01, atol=0)


@on_each_target
def test_no_tokens_give_no_rows(target):
    assert _silu_and_mul_triton(target.randn(0, 64)).shape == (0, 32)


def test_wrong_tensors_are_refused_by_name_and_value():
    with pytest.raises(ValueError, match=r"x has 7 columns; expected an even number"):
        silu_and_mul(torch.randn(2, 7))
    with pytest.raises(ValueError, match=r"x has dtype torch.int64"):
        silu_and_mul(torch.ones(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x has shape \(8,\)"):
        silu_and_mul(torch.randn(8))
