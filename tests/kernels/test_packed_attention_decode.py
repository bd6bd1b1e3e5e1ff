import pytest
import torch

from engine_service.core.sequence import MAX_KEY_TILE
from kernels import reference
from kernels.attention_parts import Parts
from kernels.packed_attention_decode import (
    _packed_attention_decode_triton,
    packed_attention_decode,
)
from tests.kernels.paged_inputs import NO_BLOCK, Shape, attend_in_steps, packed_inputs
from tests.kernels.targets import (
    Target,
    in_float32,
    on_each_device,
    on_each_target,
    worst_row_error,
)

CPU = Target(device="cpu", dtype=torch.float32)
SEQ_LENS = [1, 16, 63, 100]


def by_kernel(arguments, num_splits, window=0):
    names = arguments.keys() - {"max_seq_len"}
    return _packed_attention_decode_triton(
        **{name: arguments[name] for name in names},
        parts=Parts(num_own=num_splits),
        window=window,
    )


def assert_like_the_twin(target, arguments, num_splits, window=0):
    before = arguments["kv_cache"].clone()
    out = by_kernel(arguments, num_splits, window)
    stored = arguments["kv_cache"].clone()
    arguments["kv_cache"].copy_(before)
    expected = reference.packed_attention_decode(**arguments, window=window)
    # Both round queries and keys, and then what they mix.
    assert worst_row_error(out, expected) < 2 * target.tolerance
    assert torch.equal(stored.isnan(), arguments["kv_cache"].isnan())
    is_written = before.isnan() & ~stored.isnan()
    assert torch.equal(stored[~is_written].nan_to_num(), before[~is_written].nan_to_num())
    values = stored[1].nan_to_num(), arguments["kv_cache"][1].nan_to_num()
    assert torch.equal(*values)
    keys = stored[0].nan_to_num(), arguments["kv_cache"][0].nan_to_num()
    assert worst_row_error(*keys) < target.tolerance
    return out


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_tokens_are_stored_and_attended_to_like_by_the_twin(target, block_size, group, head_dim):
    shape = Shape(group=group, head_dim=head_dim, block_size=block_size)
    assert_like_the_twin(target, packed_inputs(target, shape, SEQ_LENS), num_splits=1)


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("num_splits", [2, 3, 7])
def test_the_split_with_the_last_token_stores_it(target, block_size, num_splits):
    shape = Shape(block_size=block_size)
    arguments = packed_inputs(target, shape, [300, 0, 1, 64, 65, 257])
    out = assert_like_the_twin(target, arguments, num_splits)
    assert (out[1] == 0).all()


@on_each_target
@pytest.mark.parametrize("num_splits", [1, 3])
def test_without_weights_heads_are_rotated_only(target, num_splits):
    arguments = packed_inputs(target, Shape(), SEQ_LENS, has_norm=False)
    assert_like_the_twin(target, arguments, num_splits)


@on_each_device
@pytest.mark.parametrize("window", [1, 64, 65, 1000])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_window_hides_all_tokens_before_it(target, window, num_splits):
    seq_lens = [1, 63, 64, 65, 0, 257, 300]
    arguments = packed_inputs(target, Shape(), seq_lens)
    for seq, seq_len in enumerate(seq_lens):
        first_tile = max(0, seq_len - window) // MAX_KEY_TILE * MAX_KEY_TILE
        arguments["block_table"][seq, : first_tile // 16] = NO_BLOCK
    assert_like_the_twin(target, arguments, num_splits, window)


@in_float32
@pytest.mark.parametrize(
    "shape",
    [
        Shape(group=5),
        Shape(num_kv_heads=1, group=7, head_dim=32),
        Shape(head_dim=16, block_size=32),
        Shape(num_kv_heads=1, head_dim=256),
        Shape(num_kv_heads=1, group=20, block_size=48),
        Shape(num_kv_heads=5, group=1, block_size=1),
    ],
)
def test_other_shapes_work_too(target, shape):
    for num_splits in (1, 2):
        assert_like_the_twin(target, packed_inputs(target, shape, [65, 2, 0, 128]), num_splits)


@on_each_target
def test_location_of_nowhere_stores_nothing(target):
    arguments = packed_inputs(target, Shape(), [5, 9])
    arguments["cache_locs"].fill_(-1)
    before = arguments["kv_cache"].isnan()
    by_kernel(arguments, num_splits=1)
    assert torch.equal(arguments["kv_cache"].isnan(), before)


@in_float32
def test_no_sequences_give_no_rows(target):
    arguments = packed_inputs(target, Shape(), [])
    assert by_kernel(arguments, num_splits=2).shape == (0, 4, 64)
    assert packed_attention_decode(**arguments).shape == (0, 4, 64)


def test_wrong_arguments_are_refused_by_name_and_value():
    arguments = packed_inputs(CPU, Shape(), [5, 9])
    for message, changes in [
        (r"qkv has shape \(2, 500\)", {"qkv": arguments["qkv"][:, :500]}),
        (r"block_table has shape \(1, \d+\)", {"block_table": arguments["block_table"][:1]}),
        (r"seq_lens has shape \(1,\); expected \(2\)", {"seq_lens": arguments["seq_lens"][:1]}),
        ("seq_lens has dtype torch.int64", {"seq_lens": arguments["seq_lens"].long()}),
        ("scale is 0.0", {"scale": 0.0}),
        ("window is -1", {"window": -1}),
    ]:
        with pytest.raises(ValueError, match=message):
            packed_attention_decode(**(arguments | changes))


def test_kernel_refuses_a_head_dimension_that_it_has_not():
    with pytest.raises(ValueError, match="head_dim is 96"):
        by_kernel(packed_inputs(CPU, Shape(head_dim=96), [5]), num_splits=1)


@pytest.mark.gpu
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [2, 4, 5])
def test_one_kernel_computes_what_two_do(head_dim, group, has_norm):
    target = Target(device="cuda", dtype=torch.bfloat16)
    shape = Shape(num_kv_heads=8, group=group, head_dim=head_dim)
    arguments = packed_inputs(target, shape, [4000, 777, 1, 64, 0], has_norm=has_norm)
    apart = arguments | {"kv_cache": arguments["kv_cache"].clone()}
    out, expected = packed_attention_decode(**arguments), attend_in_steps(**apart)
    # Sums of squares may be added in another order, which a rounding rarely shows.
    assert (out != expected).float().mean() < 0.05
    assert worst_row_error(out, expected) < target.tolerance
    is_other = arguments["kv_cache"].nan_to_num() != apart["kv_cache"].nan_to_num()
    assert not is_other[1].any()
    assert is_other[0].sum() <= 0.01 * 4 * 8 * head_dim
