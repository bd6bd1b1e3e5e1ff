import pytest
import torch

from kernels import reference
from kernels.linear import (
    _linear_triton,
    _norm_linear_triton,
    _silu_linear_triton,
    linear,
    norm_linear,
    silu_linear,
)
from tests.kernels.targets import in_float32, on_each_target, worst_row_error

EPS = 1e-6
# The norm takes rows of one tile.
NORM_SIZES = [(64, 64), (100, 24), (1500, 13), (4000, 3), (16, 7)]
SIZES = [*NORM_SIZES, (5000, 3)]
LINEARS = [_linear_triton, reference.linear, linear]
NORM_LINEARS = [_norm_linear_triton, reference.norm_linear, norm_linear]
SILU_LINEARS = [_silu_linear_triton, reference.silu_linear, silu_linear]


def make_weight(target, in_features, out_features):
    weight = target.randn(out_features, in_features) * in_features**-0.5
    if weight.is_cuda:
        torch.cuda.synchronize()  # A weight may be read before the kernel in front has ended.
    return weight


@on_each_target
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_linear_is_a_matrix_product(target, num_rows, in_features, out_features):
    x, weight = target.randn(num_rows, in_features), make_weight(target, in_features, out_features)
    truth = x.double() @ weight.double().T
    for project in LINEARS:
        assert worst_row_error(project(x, weight), truth) < target.tolerance


@on_each_target
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), NORM_SIZES)
def test_norm_linear_is_norm_and_product(target, num_rows, has_residual, in_features, out_features):
    x, weight = target.randn(num_rows, in_features), make_weight(target, in_features, out_features)
    residual = target.randn(num_rows, in_features) if has_residual else None
    norm_weight = target.randn(in_features) * 0.1 + 1
    total = x if residual is None else x + residual
    wide = total.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * norm_weight.double()
    truth = normed @ weight.double().T
    for project in NORM_LINEARS:
        out, new_residual = project(x, residual, norm_weight, EPS, weight)
        assert worst_row_error(out, truth) < 2 * target.tolerance
        assert torch.equal(new_residual, total)


@on_each_target
@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_silu_linear_is_activation_and_product(target, num_rows, in_features, out_features):
    x = target.randn(num_rows, 2 * in_features)
    weight = make_weight(target, in_features, out_features)
    gate, up = x.double().chunk(2, dim=-1)
    truth = (gate * torch.sigmoid(gate) * up) @ weight.double().T
    for project in SILU_LINEARS:
        assert worst_row_error(project(x, weight), truth) < 2 * target.tolerance


@in_float32
def test_rows_may_be_strided(target):
    x, residual = target.randn(2, 300)[:, 40:140], target.randn(2, 200)[:, 100:]
    weight, norm_weight = target.randn(20, 150)[:, 50:], target.randn(100)

    out, total = _norm_linear_triton(x, residual, norm_weight, EPS, weight)

    expected, expected_total = reference.norm_linear(x, residual, norm_weight, EPS, weight)
    assert worst_row_error(out, expected) < target.tolerance
    assert torch.equal(total, expected_total)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 100])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("in_features", [256, 5120])
def test_public_functions_are_their_twins_for_any_number_of_rows(
    num_rows, has_residual, in_features
):
    def randn(*shape):
        return torch.randn(*shape, device="cuda") / 8

    x, weight, norm_weight = (
        randn(num_rows, in_features), randn(96, in_features), randn(in_features)
    )  # fmt: skip
    residual = randn(num_rows, in_features) if has_residual else None
    torch.cuda.synchronize()
    half = weight[:, : in_features // 2]
    arguments = (x, residual, norm_weight, EPS, weight)
    pairs = [
        *zip(norm_linear(*arguments), reference.norm_linear(*arguments), strict=True),
        (linear(x, weight), reference.linear(x, weight)),
        (silu_linear(x, half), reference.silu_linear(x, half)),
    ]
    for ours, twin in pairs:
        assert ours.shape == twin.shape
        assert worst_row_error(ours, twin) < 5e-6


def test_wrong_tensors_are_refused_by_name_and_value():
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"weight has shape \(4, 8\); expected \(any, 7\)"):
        linear(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"x has 7 columns; expected an even number"):
        silu_linear(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"norm_weight has shape \(7,\); expected \(8\)"):
        norm_linear(x, None, torch.ones(7), EPS, weight)
    with pytest.raises(ValueError, match=r"residual has dtype torch.float16"):
        norm_linear(x, x.half(), torch.ones(8), EPS, weight)
