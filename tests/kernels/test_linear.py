from functools import partial

import pytest
import torch

from kernels import reference
from kernels.linear import (
    _is_small,
    _linear_triton,
    _norm_linear_triton,
    gated_linear,
    linear,
    norm_linear,
)
from tests.kernels.targets import Target, in_float32, on_each_target, worst_row_error

EPS = 1e-6
# With few rows the norm takes rows of one tile.
NORM_SIZES = [(64, 64), (100, 24), (1500, 13), (4000, 19), (16, 15)]
SIZES = [*NORM_SIZES, (5000, 19)]
ROWS = [1, 2, 3, 4, 5, 8, 11, 16]
LINEARS = [_linear_triton, reference.linear, linear]
GATED_LINEARS = [partial(_linear_triton, is_gated=True), reference.gated_linear, gated_linear]
NORM_LINEARS = [_norm_linear_triton, reference.norm_linear, norm_linear]


def make_weight(target, in_features, out_features):
    weight = target.randn(out_features, in_features) * in_features**-0.5
    if weight.is_cuda:
        torch.cuda.synchronize()  # A weight may be read before the kernel in front has ended.
    return weight


@on_each_target
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_linear_is_a_matrix_product(target, num_rows, in_features, out_features):
    x, weight = target.randn(num_rows, in_features), make_weight(target, in_features, out_features)
    truth = x.double() @ weight.double().T
    for project in LINEARS:
        assert worst_row_error(project(x, weight), truth) < target.tolerance


@on_each_target
@pytest.mark.parametrize("num_rows", [1, 4, 5, 16])
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_gated_linear_is_product_and_activation(target, num_rows, in_features, out_features):
    x = target.randn(num_rows, in_features)
    weight = make_weight(target, in_features, 2 * out_features)
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=-1)
    truth = gate * torch.sigmoid(gate) * up
    for project in GATED_LINEARS:
        assert worst_row_error(project(x, weight), truth) < 2 * target.tolerance


@on_each_target
@pytest.mark.parametrize("num_rows", [1, 3, 7, 16])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("sizes", NORM_SIZES)
def test_norm_linear_is_norm_and_product(target, num_rows, has_residual, is_gated, sizes):
    in_features, out_features = sizes
    x = target.randn(num_rows, in_features)
    weight = make_weight(target, in_features, 2 * out_features if is_gated else out_features)
    residual = target.randn(num_rows, in_features) if has_residual else None
    norm_weight = target.randn(in_features) * 0.1 + 1
    total = x if residual is None else x + residual
    wide = total.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * norm_weight.double()
    truth = normed @ weight.double().T
    if is_gated:
        gate, up = truth.chunk(2, dim=-1)
        truth = gate * torch.sigmoid(gate) * up
    for project in NORM_LINEARS:
        out, new_residual = project(x, residual, norm_weight, EPS, weight, is_gated=is_gated)
        assert worst_row_error(out, truth) < 2 * target.tolerance * (2 if is_gated else 1)
        assert torch.equal(new_residual, total)


@in_float32
@pytest.mark.parametrize("num_rows", [2, 9])
def test_rows_may_be_strided(target, num_rows):
    x, residual = target.randn(num_rows, 300)[:, 40:140], target.randn(num_rows, 200)[:, 100:]
    weight, norm_weight = target.randn(20, 150)[:, 50:], target.randn(100)

    out, total = _norm_linear_triton(x, residual, norm_weight, EPS, weight)

    expected, expected_total = reference.norm_linear(x, residual, norm_weight, EPS, weight)
    assert worst_row_error(out, expected) < target.tolerance
    assert torch.equal(total, expected_total)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 16, 17, 100])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("in_features", [256, 5120])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
)
def test_public_functions_are_their_twins_for_any_number_of_rows(
    num_rows, has_residual, in_features, dtype, tolerance
):
    def randn(*shape):
        return (torch.randn(*shape, device="cuda") / 8).to(dtype)

    x, weight, norm_weight = (
        randn(num_rows, in_features), randn(96, in_features), randn(in_features)
    )  # fmt: skip
    residual = randn(num_rows, in_features) if has_residual else None
    torch.cuda.synchronize()
    arguments = (x, residual, norm_weight, EPS, weight)
    pairs = [
        (linear(x, weight), reference.linear(x, weight)),
        (gated_linear(x, weight), reference.gated_linear(x, weight)),
    ]
    for is_gated in (False, True):
        ours = norm_linear(*arguments, is_gated=is_gated)
        twins = reference.norm_linear(*arguments, is_gated=is_gated)
        pairs += zip(ours, twins, strict=True)
    for ours, twin in pairs:
        assert ours.shape == twin.shape
        assert worst_row_error(ours, twin) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [5, 16])
@pytest.mark.parametrize(
    ("in_features", "out_features"),
    [(1024, 6144), (3072, 1024), (2560, 19456), (9728, 2560), (4096, 6144), (7168, 4096)],
)
def test_products_of_real_sizes_are_right_and_the_same_each_time(
    num_rows, in_features, out_features
):
    target = Target(device="cuda", dtype=torch.bfloat16)
    x, weight = target.randn(num_rows, in_features), make_weight(target, in_features, out_features)
    norm_weight = target.randn(in_features) * 0.1 + 1
    truth = x.double() @ weight.double().T

    out = linear(x, weight)
    normed, total = norm_linear(x, x, norm_weight, EPS, weight)

    assert worst_row_error(out, truth) < target.tolerance
    expected = reference.norm_linear(x.double(), x.double(), norm_weight, EPS, weight.double())
    assert worst_row_error(normed, expected[0]) < 2 * target.tolerance
    assert torch.equal(total, x + x)
    for _ in range(5):
        assert torch.equal(linear(x, weight), out)
        assert torch.equal(norm_linear(x, x, norm_weight, EPS, weight)[0], normed)


def test_no_rows_make_no_output():
    x, weight, norm_weight = torch.randn(0, 8), torch.randn(4, 8), torch.randn(8)
    assert _linear_triton(x, weight).shape == (0, 4)
    out, total = _norm_linear_triton(x, x, norm_weight, EPS, weight, is_gated=True)
    assert out.shape == (0, 2)
    assert total.shape == (0, 8)


def test_wrong_tensors_are_refused_by_name_and_value():
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"weight has shape \(4, 8\); expected \(any, 7\)"):
        linear(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"weight has 3 rows; expected an even number"):
        gated_linear(x, weight[:3])
    with pytest.raises(ValueError, match=r"norm_weight has shape \(7,\); expected \(8\)"):
        norm_linear(x, None, torch.ones(7), EPS, weight)
    with pytest.raises(ValueError, match=r"residual has dtype torch.float16"):
        norm_linear(x, x.half(), torch.ones(8), EPS, weight)


@pytest.mark.parametrize(
    ("num_rows", "dtype", "has_norm", "out_features", "expected"),
    [
        (4, torch.float32, True, 1024, True),
        (5, torch.bfloat16, True, 1024, True),
        (8, torch.bfloat16, True, 1024, True),
        (9, torch.bfloat16, True, 1024, False),
        (16, torch.bfloat16, False, 1024, True),
        (17, torch.bfloat16, False, 1024, False),
        (8, torch.float16, True, 1024, False),
        (8, torch.float16, False, 1024, True),
        (5, torch.float32, False, 1024, False),
        (8, torch.bfloat16, False, 1 << 16, True),
        (8, torch.bfloat16, False, (1 << 16) + 1, False),
        (1, torch.bfloat16, False, 1 << 15, False),
    ],
)
def test_products_of_few_rows_that_are_faster_here_than_with_cublas(
    num_rows, dtype, has_norm, out_features, expected
):
    x = torch.empty(num_rows, 1024, dtype=dtype, device="meta")
    weight = torch.empty(out_features, 1024, dtype=dtype, device="meta")

    assert _is_small(x, weight, has_norm=has_norm) is expected
