import pytest
import torch

from kernels import reference
from kernels.qk_norm_rope_store import _qk_norm_rope_store_triton, qk_norm_rope_store
from tests.kernels.paged_inputs import Shape
from tests.kernels.targets import (
    Target,
    in_float32,
    on_each_device,
    on_each_target,
    worst_row_error,
)

CPU = Target(device="cpu", dtype=torch.float32)
EPS = 1e-6


def cos_sin_table(max_position, head_dim):
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.arange(max_position).double()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def arguments(target, shape, locations, num_blocks=9):
    """Returns the arguments of the function, with a cache that is all NaN."""
    num_tokens = len(locations)
    num_packed = shape.num_heads + 2 * shape.num_kv_heads
    # A layer of a larger pool, and rows of wider ones.
    pool = torch.full(
        (num_blocks, 2, 2, shape.num_kv_heads, shape.block_size, shape.head_dim), torch.nan
    ).to(target.device, target.dtype)
    return {
        "qkv": target.randn(num_tokens, num_packed * shape.head_dim + 8)[:, :-8],
        "q_weight": target.randn(shape.head_dim),
        "k_weight": target.randn(shape.head_dim),
        "eps": EPS,
        "cos_sin": cos_sin_table(500, shape.head_dim).to(target.device),
        "positions": torch.randint(0, 500, (num_tokens,)).to(target.device),
        "cache_locs": torch.tensor(locations, dtype=torch.int64, device=target.device),
        "kv_cache": pool[:, 1].transpose(0, 1),
        "num_heads": shape.num_heads,
    }


def distinct_locations(num_tokens, shape, num_blocks=9):
    return torch.randperm(num_blocks * shape.block_size)[:num_tokens].tolist()


def expected_heads(args, shape):
    """Returns queries, keys and values in float64, rotated as complex numbers."""
    heads = args["qkv"].double().unflatten(1, (-1, shape.head_dim))
    queries, keys, values = heads.split(
        (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1
    )
    cos, sin = args["cos_sin"][args["positions"]].double().chunk(2, dim=-1)
    turn = torch.complex(cos, sin)[:, None]

    def norm_and_turn(x, weight):
        if weight is not None:
            x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
        turned = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    return norm_and_turn(queries, args["q_weight"]), norm_and_turn(keys, args["k_weight"]), values


def stored_at(kv_cache, locations, block_size):
    return kv_cache[
        :, locations // block_size, :, locations % block_size
    ]  # [num_tokens, 2, num_kv_heads, head_dim]


def assert_stored_and_returned(target, store, shape, num_tokens, **changes):
    args = arguments(target, shape, distinct_locations(num_tokens, shape)) | changes
    queries = store(**args)
    expected_queries, expected_keys, expected_values = expected_heads(args, shape)
    keys, values = stored_at(args["kv_cache"], args["cache_locs"], shape.block_size).unbind(1)
    assert queries.is_contiguous()
    assert worst_row_error(queries, expected_queries) < target.tolerance
    assert worst_row_error(keys, expected_keys) < target.tolerance
    assert torch.equal(values.double(), expected_values)


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_queries_come_back_and_keys_and_values_lie_where_they_belong(
    target, block_size, group, head_dim
):
    shape = Shape(group=group, head_dim=head_dim, block_size=block_size)
    for store in (_qk_norm_rope_store_triton, reference.qk_norm_rope_store):
        assert_stored_and_returned(target, store, shape, num_tokens=5)


@on_each_target
@pytest.mark.parametrize("num_tokens", [1, 63, 100])
def test_any_number_of_tokens_is_stored(target, num_tokens):
    for store in (_qk_norm_rope_store_triton, reference.qk_norm_rope_store):
        assert_stored_and_returned(target, store, Shape(), num_tokens)


@on_each_target
@pytest.mark.parametrize("head_dim", [64, 128])
def test_without_weights_heads_are_rotated_only(target, head_dim):
    for store in (_qk_norm_rope_store_triton, reference.qk_norm_rope_store):
        assert_stored_and_returned(
            target, store, Shape(head_dim=head_dim), 63, q_weight=None, k_weight=None
        )


@on_each_target
@pytest.mark.parametrize("store", [_qk_norm_rope_store_triton, reference.qk_norm_rope_store])
def test_nothing_else_is_written(target, store):
    shape = Shape()
    args = arguments(target, shape, [-1, 17, -1, 40])
    queries = store(**args)
    is_written = ~args["kv_cache"].isnan()
    assert int(is_written.sum()) == 2 * 2 * shape.num_kv_heads * shape.head_dim
    assert stored_at(is_written, args["cache_locs"][[1, 3]], shape.block_size).all()
    assert worst_row_error(queries, expected_heads(args, shape)[0]) < target.tolerance


@in_float32
@pytest.mark.parametrize(
    "shape",
    [
        Shape(num_kv_heads=3, group=5),
        Shape(num_kv_heads=1, group=1, head_dim=16),
        Shape(head_dim=256),
    ],
)
def test_other_shapes_work_too(target, shape):
    args = arguments(target, shape, distinct_locations(3, shape))
    queries = _qk_norm_rope_store_triton(**args)
    kernel_cache = args["kv_cache"].clone()
    expected = reference.qk_norm_rope_store(**args)
    assert worst_row_error(queries, expected) < target.tolerance
    torch.testing.assert_close(kernel_cache, args["kv_cache"], equal_nan=True)


@in_float32
def test_no_tokens_give_no_queries(target):
    args = arguments(target, Shape(), [])
    for store in (_qk_norm_rope_store_triton, reference.qk_norm_rope_store):
        assert store(**args).shape == (0, 4, 64)
        assert args["kv_cache"].isnan().all()


@in_float32
def test_one_location_shifted_changes_the_attention(target):
    shape, num_tokens = Shape(), 40
    args = arguments(target, shape, list(range(16, 16 + num_tokens)), num_blocks=5)
    args["positions"] = torch.arange(num_tokens, device=target.device)
    table = torch.tensor([[1, 2, 3]], dtype=torch.int32, device=target.device)
    length = torch.tensor([num_tokens], dtype=torch.int32, device=target.device)

    def attend():
        args["kv_cache"].zero_()
        queries = qk_norm_rope_store(**args)[-1:]
        return reference.paged_attention_decode(
            queries, args["kv_cache"], table, length, num_tokens, shape.head_dim**-0.5
        )

    right = attend()
    args["cache_locs"][20] += 1
    assert worst_row_error(attend(), right) > 100 * target.tolerance


def test_wrong_tensors_are_refused_by_name_and_value():
    args = arguments(CPU, Shape(), [3, 5])
    for message, changes in [
        (r"qkv has shape \(2, 500\); expected \(any, 512\)", {"qkv": args["qkv"][:, :500]}),
        ("kv_cache has dtype torch.float16", {"kv_cache": args["kv_cache"].half()}),
        (r"k_weight has shape \(32,\); expected \(64\)", {"k_weight": args["k_weight"][:32]}),
        ("cos_sin has dtype torch.float16", {"cos_sin": args["cos_sin"].half()}),
        ("positions has dtype torch.int32", {"positions": args["positions"].int()}),
        (r"cache_locs has shape \(1,\)", {"cache_locs": args["cache_locs"][:1]}),
        ("one of q_weight and k_weight is None", {"k_weight": None}),
        ("num_heads is 3; expected a positive multiple", {"num_heads": 3}),
    ]:
        with pytest.raises(ValueError, match=message):
            qk_norm_rope_store(**(args | changes))


def test_kernel_refuses_a_head_dimension_that_it_has_not():
    args = arguments(CPU, Shape(head_dim=96), [3])
    with pytest.raises(ValueError, match="head_dim is 96"):
        _qk_norm_rope_store_triton(**args)
