from collections import Counter
from random import Random

import pytest
import torch

from engine_service.core.sequence import MAX_KEY_TILE
from kernels import reference
from kernels.attention_parts import (
    Parts,
    count_splits,
    launch_arguments,
    make_counters,
    num_further_splits,
)
from kernels.decode_splits import NUM_COLUMNS, _split_sequences_triton, split_sequences
from kernels.paged_attention_decode import _paged_attention_decode_triton, paged_attention_decode
from kernels.shared_prefix import SharedPrefixes
from tests.kernels.paged_inputs import NO_BLOCK, Shape, paged_inputs
from tests.kernels.targets import (
    Target,
    in_float32,
    on_each_device,
    on_each_target,
    worst_row_error,
)

CPU = Target(device="cpu", dtype=torch.float32)
SEQ_LENS = [1, 16, 63, 100]
FEW_FURTHER, MANY_FURTHER = Parts(num_own=1, num_further=2), Parts(num_own=1, num_further=30)


def decode_inputs(target, shape, seq_lens):
    return paged_inputs(target, shape, [1] * len(seq_lens), seq_lens)


def by_twin(inputs, max_seq_len=1000, out=None, window=0):
    return reference.paged_attention_decode(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.seq_lens,
        max_seq_len,
        inputs.scale,
        out,
        window,
    )


def by_kernel(inputs, parts, out=None, window=0, counters=None):
    """Divides each sequence into equally many parts, or the longer ones into more."""
    splits = None
    if isinstance(parts, int):
        parts = Parts(num_own=parts)
    elif parts.num_further:
        splits = _split_sequences_triton(inputs.seq_lens, parts.num_further, window)
    return _paged_attention_decode_triton(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.seq_lens,
        inputs.scale,
        parts,
        out,
        window,
        counters=counters,
        splits=splits,
    )


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_decode_is_attention_by_definition(target, block_size, group, head_dim):
    shape = Shape(group=group, head_dim=head_dim, block_size=block_size)
    inputs = decode_inputs(target, shape, SEQ_LENS)
    truth = inputs.truth()
    assert worst_row_error(by_twin(inputs), truth) < target.tolerance
    assert worst_row_error(by_kernel(inputs, parts=1), truth) < target.tolerance


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("parts", [2, 3, 7, FEW_FURTHER, MANY_FURTHER])
def test_splits_that_are_empty_or_uneven_change_nothing(target, block_size, parts):
    inputs = decode_inputs(target, Shape(block_size=block_size), [300, 0, 1, 64, 65, 257])
    out = by_kernel(inputs, parts)
    truth = inputs.truth()
    assert worst_row_error(out, truth) < target.tolerance
    assert (out[1] == 0).all()


@on_each_device
@pytest.mark.parametrize("parts", [2, 9, 64, MANY_FURTHER])
def test_more_parts_than_are_combined_at_once(target, parts):
    shape = Shape(num_kv_heads=1, group=20)
    inputs = decode_inputs(target, shape, [600, 33, 0, 64])
    assert launch_arguments(inputs.kv_cache, shape.num_heads, 0, Parts(2))["AT_ONCE"] == 4
    assert worst_row_error(by_kernel(inputs, parts), inputs.truth()) < target.tolerance


@on_each_device
@pytest.mark.parametrize("parts", [3, MANY_FURTHER])
def test_counts_begin_anew_at_each_launch(target, parts):
    counters = make_counters(target.device)
    for _ in range(2):
        for lens in ([300, 65], [64, 129, 0]):
            inputs = decode_inputs(target, Shape(), lens)
            out = by_kernel(inputs, parts, counters=counters)
            assert worst_row_error(out, inputs.truth()) < target.tolerance
            assert not counters.any()


def test_too_few_counters_are_refused():
    inputs = decode_inputs(CPU, Shape(num_kv_heads=2), [70, 70])
    with pytest.raises(ValueError, match="counters has 3 elements; expected at least 4"):
        by_kernel(inputs, 2, counters=make_counters(CPU.device)[:3])


@on_each_device
@pytest.mark.parametrize("parts", [None, 1, 3, MANY_FURTHER])
def test_given_output_keeps_the_rows_of_empty_sequences(target, parts):
    inputs = decode_inputs(target, Shape(), [0, 70, 0, 1, 0])
    out = target.randn(*inputs.queries.shape)
    before = out.clone()

    result = by_kernel(inputs, parts, out) if parts else by_twin(inputs, out=out)

    assert result is out
    is_empty = inputs.seq_lens == 0
    assert torch.equal(out[is_empty], before[is_empty])
    assert worst_row_error(out[~is_empty], inputs.truth()[~is_empty]) < target.tolerance


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
    inputs = decode_inputs(target, shape, [65, 2, 0, 128])
    truth = inputs.truth()
    assert worst_row_error(by_twin(inputs), truth) < target.tolerance
    for parts in (1, 2, MANY_FURTHER):
        assert worst_row_error(by_kernel(inputs, parts), truth) < target.tolerance


@on_each_device
@pytest.mark.parametrize("window", [1, 64, 65, 1000])
@pytest.mark.parametrize("parts", [1, 3, FEW_FURTHER, MANY_FURTHER])
def test_window_hides_all_tokens_before_it(target, window, parts):
    seq_lens = [1, 63, 64, 65, 0, 257, 300]
    inputs = decode_inputs(target, Shape(), seq_lens)
    # No block is read of which no tile has a token in the window.
    for seq, seq_len in enumerate(seq_lens):
        first_tile = max(0, seq_len - window) // MAX_KEY_TILE * MAX_KEY_TILE
        inputs.block_table[seq, : first_tile // 16] = NO_BLOCK
    truth = inputs.truth(window)

    assert worst_row_error(by_twin(inputs, window=window), truth) < target.tolerance
    assert worst_row_error(by_kernel(inputs, parts, window=window), truth) < target.tolerance


@on_each_target
@pytest.mark.parametrize("parts", [1, 3, MANY_FURTHER])
def test_lengths_around_a_block_and_a_tile_are_right(target, parts):
    inputs = decode_inputs(target, Shape(block_size=64), [1, 63, 64, 65, 128, 100])
    assert worst_row_error(by_kernel(inputs, parts), inputs.truth()) < target.tolerance


@in_float32
@pytest.mark.parametrize("parts", [1, 4, MANY_FURTHER])
def test_padded_rows_give_zeros_whatever_their_table_holds(target, parts):
    inputs = decode_inputs(target, Shape(), [0, 33, 0])
    out = by_kernel(inputs, parts)
    for result in (out, by_twin(inputs)):
        assert (result[[0, 2]] == 0).all()
    assert worst_row_error(out, inputs.truth()) < target.tolerance
    assert (by_twin(decode_inputs(target, Shape(), [0, 0])) == 0).all()


@in_float32
@pytest.mark.parametrize("num_seqs", [64, 65, 130])
@pytest.mark.parametrize("num_further", [1, 7, 100])
def test_many_sequences_of_which_some_are_long(target, num_seqs, num_further):
    random = Random(num_seqs)
    seq_lens = [random.choice([0, 1, 20, 20, 150, 900]) for _ in range(num_seqs)]
    inputs = decode_inputs(target, Shape(num_kv_heads=1, group=2, head_dim=16), seq_lens)
    counters = make_counters(target.device)
    parts = Parts(num_own=1, num_further=num_further)

    out = by_kernel(inputs, parts, counters=counters)

    assert worst_row_error(out, inputs.truth()) < target.tolerance
    assert not counters.any()


@in_float32
def test_no_sequences_give_no_rows(target):
    inputs = decode_inputs(target, Shape(), [])
    assert by_kernel(inputs, parts=2).shape == (0, 4, 64)
    assert by_twin(inputs).shape == (0, 4, 64)


def test_row_of_the_twin_does_not_depend_on_its_neighbours():
    inputs = decode_inputs(CPU, Shape(), [100, 7, 400])
    together = by_twin(inputs)
    for row in range(3):
        alone = reference.paged_attention_decode(
            inputs.queries[row : row + 1],
            inputs.kv_cache,
            inputs.block_table[row : row + 1],
            inputs.seq_lens[row : row + 1],
            400,
            inputs.scale,
        )
        assert worst_row_error(alone, together[row : row + 1]) < 1e-6


@pytest.mark.parametrize(
    ("num_pairs", "max_seq_len", "expected"),
    [(8, 100, 2), (8, 32768, 64), (64, 4096, 8), (512, 4096, 1), (2048, 40960, 1), (0, 0, 1)],
)
def test_splits_follow_the_room_left_on_the_gpu_and_the_length(num_pairs, max_seq_len, expected):
    assert count_splits(num_pairs, max_seq_len, num_processors=132) == expected


@pytest.mark.parametrize(
    ("num_seqs", "num_kv_heads", "max_seq_len", "expected"),
    [
        (2, 8, 65, 66),
        (256, 8, 32_768, 66),
        (256, 8, 64, 0),
        (256, 1, 32_768, 528),
        (512, 8, 32_768, 66),
        (256, 20, 32_768, 26),
        (256, 33, 32_768, 0),
        (2, 1000, 32_768, 1),
    ],
)
def test_further_splits_follow_the_room_on_the_gpu(num_seqs, num_kv_heads, max_seq_len, expected):
    assert num_further_splits(num_seqs, num_kv_heads, max_seq_len, 132) == expected


def planned(seq_lens, num_further, window=0):
    """Returns the rows of a plan that have work: sequence, split, its splits, those in front."""
    lens = torch.tensor(seq_lens, dtype=torch.int32)
    rows = _split_sequences_triton(lens, num_further, window).tolist()
    num_unused = sum(split < 0 for _, split, *_ in rows)
    assert len(rows) == len(seq_lens) + num_further
    assert all(split >= 0 for _, split, *_ in rows[num_unused:])
    assert all(seq_lens[seq] == seq_len for seq, *_, seq_len in rows[num_unused:])
    return [tuple(row[:4]) for row in rows[num_unused:]]


def test_longer_sequences_have_more_splits():
    assert planned([600, 200, 0, 100], 3) == [
        (0, 0, 2, 0), (0, 1, 2, 0), (1, 0, 1, 2), (2, 0, 1, 3), (3, 0, 1, 4),
    ]  # fmt: skip
    # Shares of one tile at least.
    assert planned([64, 40], 30) == [(0, 0, 2, 0), (0, 1, 2, 0), (1, 0, 1, 2)]
    # Only what a window shows is read.
    assert planned([9000, 100], 2, window=100) == [(0, 0, 1, 0), (1, 0, 1, 1)]


def test_equal_sequences_are_not_divided_if_there_are_enough():
    assert planned([1000, 900, 1100] * 20, 66) == [(seq, 0, 1, seq) for seq in range(60)]


def test_plans_have_room_for_all_splits_of_any_lengths():
    random = Random(5)
    for _ in range(100):
        seq_lens = [random.choice([0, 33, 700, 30_000]) for _ in range(random.randint(2, 512))]
        rows = planned(seq_lens, random.choice([1, 5, 66]))
        counts = Counter(seq for seq, *_ in rows)
        assert list(counts) == list(range(len(seq_lens)))
        expected = [
            (seq, split, counts[seq], sum(counts[other] for other in range(seq)))
            for seq in counts
            for split in range(counts[seq])
        ]
        assert rows == expected


def test_without_a_gpu_nothing_is_planned():
    assert split_sequences(torch.tensor([5, 9000], dtype=torch.int32), 9000, 8) is None


def test_wrong_arguments_are_refused_by_name_and_value():
    inputs = decode_inputs(CPU, Shape(), [5, 9])

    def call(**changes):
        arguments = {
            "queries": inputs.queries,
            "kv_cache": inputs.kv_cache,
            "block_table": inputs.block_table,
            "seq_lens": inputs.seq_lens,
            "max_seq_len": 9,
            "scale": inputs.scale,
        }
        return paged_attention_decode(**(arguments | changes))

    assert torch.equal(call(), by_twin(inputs))
    integers = torch.zeros(3, NUM_COLUMNS, dtype=torch.int32)
    no_tile, no_len = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    shared = SharedPrefixes(tiles=no_tile, members=no_len, prefix_lens=no_len)
    for message, changes in [
        ("queries has dtype torch.float64", {"queries": inputs.queries.double()}),
        (r"queries has shape \(2, 64\)", {"queries": inputs.queries[:, 0]}),
        ("kv_cache has dtype torch.float16", {"kv_cache": inputs.kv_cache.half()}),
        ("expected \\(2, any, any, any, 64\\)", {"kv_cache": inputs.kv_cache[..., :32]}),
        ("num_heads is 3; expected a positive multiple", {"queries": inputs.queries[:, :3]}),
        ("block_table has dtype torch.int64", {"block_table": inputs.block_table.long()}),
        (r"block_table has shape \(1, 5\)", {"block_table": inputs.block_table[:1]}),
        (r"seq_lens has shape \(1,\); expected \(2\)", {"seq_lens": inputs.seq_lens[:1]}),
        ("splits has dtype torch.int64", {"splits": torch.zeros(3, NUM_COLUMNS).long()}),
        ("splits has 2 rows of strides .5, 1.; expected more than 2", {"splits": integers[:2]}),
        ("splits has 3 rows of strides .10, 2.", {"splits": integers.repeat(1, 2)[:, ::2]}),
        ("splits is given; expected None", {"splits": integers, "shared": shared}),
        ("scale is 0.0", {"scale": 0.0}),
        ("scale is nan", {"scale": float("nan")}),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changes)


def test_kernel_refuses_a_head_dimension_that_it_has_not():
    inputs = decode_inputs(CPU, Shape(head_dim=96), [5])
    with pytest.raises(ValueError, match="head_dim is 96"):
        by_kernel(inputs, parts=1)


@pytest.mark.gpu
@pytest.mark.parametrize("group", [2, 4])
def test_bfloat16_is_at_most_twice_as_far_off_as_torch(group):
    target = Target(device="cuda", dtype=torch.bfloat16)
    shape = Shape(num_kv_heads=8, group=group, head_dim=128)
    inputs = decode_inputs(target, shape, [4000, 777, 1])
    out = paged_attention_decode(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.seq_lens,
        4000,
        inputs.scale,
    )
    truth = inputs.truth()
    by_torch = torch.stack(
        [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, None], keys.transpose(0, 1), values.transpose(0, 1), enable_gqa=True
            )[:, 0]
            for query, keys, values in zip(inputs.queries, inputs.keys, inputs.values, strict=True)
        ]
    )
    ours, theirs = (out - truth).norm(), (by_torch - truth).norm()
    assert ours <= 2 * theirs
