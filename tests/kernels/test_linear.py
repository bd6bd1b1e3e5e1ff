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
    linear_norm_linear,
    norm_linear,
)
from kernels.linear_hopper import can_chain, can_multiply
from kernels.tile_shares import make_counters
from tests.kernels.targets import Target, in_float32, on_each_target, worst_row_error

EPS = 1e-6
# With few rows the norm takes rows of one tile.
NORM_SIZES = [(64, 64), (100, 24), (1500, 13), (4000, 19), (16, 15)]
SIZES = [*NORM_SIZES, (5000, 19)]
ROWS = [1, 2, 3, 4]
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
@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_gated_linear_is_product_and_activation(target, num_rows, in_features, out_features):
    x = target.randn(num_rows, in_features)
    weight = make_weight(target, in_features, 2 * out_features)
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=-1)
    truth = gate * torch.sigmoid(gate) * up
    for project in GATED_LINEARS:
        assert worst_row_error(project(x, weight), truth) < 2 * target.tolerance


@on_each_target
@pytest.mark.parametrize("num_rows", [1, 3])
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
@pytest.mark.parametrize("num_rows", [2])
def test_rows_may_be_strided(target, num_rows):
    x, residual = target.randn(num_rows, 300)[:, 40:140], target.randn(num_rows, 200)[:, 100:]
    weight, norm_weight = target.randn(20, 150)[:, 50:], target.randn(100)

    out, total = _norm_linear_triton(x, residual, norm_weight, EPS, weight)

    expected, expected_total = reference.norm_linear(x, residual, norm_weight, EPS, weight)
    assert worst_row_error(out, expected) < target.tolerance
    assert torch.equal(total, expected_total)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 16, 17, 33, 64, 65, 100])
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
    first_x, first_weight = randn(num_rows, 200), randn(in_features, 200)
    residual = randn(num_rows, in_features)
    torch.cuda.synchronize()
    arguments = (x, residual if has_residual else None, norm_weight, EPS, weight)
    chained = (first_x, first_weight, residual, norm_weight, EPS, weight)
    pairs = [
        (linear(x, weight), reference.linear(x, weight)),
        (gated_linear(x, weight), reference.gated_linear(x, weight)),
    ]
    for is_gated in (False, True):
        ours = norm_linear(*arguments, is_gated=is_gated)
        twins = reference.norm_linear(*arguments, is_gated=is_gated)
        pairs += zip(ours, twins, strict=True)
        ours = linear_norm_linear(*chained, is_gated=is_gated)
        twins = reference.linear_norm_linear(*chained, is_gated=is_gated)
        pairs += zip(ours, twins, strict=True)
    for ours, twin in pairs:
        assert ours.shape == twin.shape
        assert worst_row_error(ours, twin) < tolerance


# Of a layer of Qwen3-0.6B, half of 32B, 4B, and sizes that fill no tile; gated have twice the rows.
REAL_SIZES = [
    (1024, 4096), (2048, 1024), (3072, 1024), (4096, 5120), (12800, 5120), (9728, 2560),
    (2560, 19456), (5120, 25600), (200, 72), (1000, 6152),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 5, 16, 17, 33, 64])
@pytest.mark.parametrize(("in_features", "out_features"), REAL_SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_real_sizes_are_right_and_the_same_each_time(
    num_rows, in_features, out_features, dtype
):
    target = Target(device="cuda", dtype=dtype)
    x, weight = target.randn(num_rows, in_features), make_weight(target, in_features, out_features)
    counters = make_counters("cuda")
    truth = x.double() @ weight.double().T
    gate, up = truth.chunk(2, dim=-1)

    out = linear(x, weight, counters=counters)
    gated = gated_linear(x, weight, counters)

    assert worst_row_error(out, truth) < target.tolerance
    assert worst_row_error(gated, gate * torch.sigmoid(gate) * up) < 2 * target.tolerance
    for _ in range(5):
        assert torch.equal(linear(x, weight, counters=counters), out)
        assert torch.equal(gated_linear(x, weight, counters), gated)
    assert not counters.any()


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 5, 16, 33, 64])
@pytest.mark.parametrize(
    ("in_features", "hidden", "out_features", "is_gated"),
    [(2048, 1024, 6144, True), (3072, 1024, 4096, False), (4096, 4096, 24576, True),
     (12800, 5120, 5120, False), (200, 1088, 144, True)],
)  # fmt: skip
def test_chained_products_are_right_and_the_same_each_time(
    num_rows, in_features, hidden, out_features, is_gated
):
    target = Target(device="cuda", dtype=torch.bfloat16)
    x, residual = target.randn(num_rows, in_features), target.randn(num_rows, hidden)
    weight = make_weight(target, in_features, hidden)
    norm_weight = target.randn(hidden) * 0.1 + 1
    next_weight = make_weight(target, hidden, out_features)
    arguments = (residual, norm_weight, EPS, next_weight)
    counters, next_counters = make_counters("cuda"), make_counters("cuda")
    project = partial(
        linear_norm_linear, x, weight, *arguments, counters, next_counters, is_gated=is_gated
    )

    out, total = project()

    expected, _ = reference.linear_norm_linear(
        *(tensor.double() for tensor in (x, weight, residual, norm_weight)),
        EPS,
        next_weight.double(),
        is_gated=is_gated,
    )
    assert worst_row_error(out, expected) < (4 if is_gated else 2) * target.tolerance
    assert worst_row_error(total, residual.double() + x.double() @ weight.double().T) < 8e-3
    for _ in range(5):
        again, total_again = project()
        assert torch.equal(again, out)
        assert torch.equal(total_again, total)
    assert not counters.any()
    assert not next_counters.any()


def test_no_rows_make_no_output():
    x, weight, norm_weight = torch.randn(0, 8), torch.randn(4, 8), torch.randn(8)
    assert _linear_triton(x, weight).shape == (0, 4)
    out, total = _norm_linear_triton(x, x, norm_weight, EPS, weight, is_gated=True)
    assert out.shape == (0, 2)
    assert total.shape == (0, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("is_gated", [False, True])
def test_a_row_that_is_not_a_number_leaves_the_others_alone(is_gated):
    target = Target(device="cuda", dtype=torch.bfloat16)
    x, residual = target.randn(7, 2048), target.randn(7, 1024)
    weight, next_weight = make_weight(target, 2048, 1024), make_weight(target, 1024, 6144)
    norm_weight = target.randn(1024)
    project = partial(
        linear_norm_linear, weight=weight, norm_weight=norm_weight, eps=EPS,
        next_weight=next_weight, is_gated=is_gated,
    )  # fmt: skip
    expected = project(x, residual=residual)
    x[3], residual[5] = torch.nan, torch.inf
    others = [0, 1, 2, 4, 6]

    for out, right in zip(project(x, residual=residual), expected, strict=True):
        assert torch.equal(out[others], right[others])
        assert not out[[3, 5]].isfinite().any()


def test_wrong_tensors_are_refused_by_name_and_value():
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"weight has shape \(4, 8\); expected \(any, 7\)"):
        linear(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"weight has 3 rows; expected an even number"):
        gated_linear(x, weight[:3])
    with pytest.raises(ValueError, match=r"norm_weight has shape \(7,\); expected \(8\)"):
        norm_linear(x, None, torch.ones(7), EPS, weight)
    with pytest.raises(ValueError, match=r"counters has shape \(4,\); expected \(1024\)"):
        linear(x, weight, counters=torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"counters has dtype torch.float32"):
        gated_linear(x, weight, torch.zeros(1024))
    with pytest.raises(ValueError, match=r"residual has shape \(2, 8\); expected \(2, 4\)"):
        linear_norm_linear(x, weight, x, torch.ones(4), EPS, weight)
    with pytest.raises(ValueError, match=r"residual has dtype torch.float16"):
        norm_linear(x, x.half(), torch.ones(8), EPS, weight)


@pytest.mark.parametrize(
    ("num_rows", "in_features", "has_norm", "out_features", "expected"),
    [
        (4, 1024, True, 2000, True),
        (5, 1024, True, 64, False),
        (4, 1024, False, 2048, False),
        (1, 1024, False, (1 << 13) - 1, True),
        (1, 1024, False, 1 << 13, False),
        (1, 4097, False, 64, True),
        (1, 4097, True, 64, False),
    ],
)
def test_products_of_few_rows_and_weights_have_the_kernel_for_them(
    num_rows, in_features, has_norm, out_features, expected
):
    x = torch.empty(num_rows, in_features, device="meta")
    weight = torch.empty(out_features, in_features, device="meta")

    assert _is_small(x, weight, has_norm=has_norm) is expected


@pytest.mark.gpu
def test_what_the_kernel_for_hopper_cannot_read_is_left_to_others():
    def rows(num_rows, in_features, dtype=torch.bfloat16):
        return torch.empty(num_rows, in_features, device="cuda", dtype=dtype)

    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    weight = rows(64, 256)
    assert can_multiply(rows(64, 256), weight)
    assert can_multiply(rows(64, 512)[:, 8:264], weight)
    assert not can_multiply(rows(65, 256), weight)
    assert not can_multiply(rows(64, 512)[:, 1:257], weight)
    assert not can_multiply(rows(64, 260)[:, :256], weight)
    assert not can_multiply(rows(64, 256, torch.float32), rows(64, 256, torch.float32))
    assert can_chain(rows(64, 256), weight, rows(8, 64))
    assert not can_chain(rows(64, 256), rows(63, 256), rows(8, 63))
    half = torch.float16
    assert not can_chain(rows(64, 256, half), rows(64, 256, half), rows(8, 64, half))
