"""Decode attention that reads shared prefixes once gives what it gives without."""

import pytest
import torch

from kernels import paged_attention_decode as paged_attention_decode_module
from kernels.attention_parts import Parts
from kernels.paged_attention_decode import _paged_attention_decode_triton, paged_attention_decode
from kernels.shared_prefix import MAX_MEMBERS, SharedPrefixes, num_shared_splits
from tests.kernels.paged_inputs import Shape, paged_inputs
from tests.kernels.targets import Target, on_each_device, worst_row_error

CPU = Target(device="cpu", dtype=torch.float32)
UNWRITTEN = 12345


def shared_inputs(target, shape, seq_lens, groups):
    """Returns inputs whose groups (members, blocks) share their first blocks, and who shares what.

    Unused tiles and members, and one spare of each, hold anything.
    """
    inputs = paged_inputs(target, shape, [1] * len(seq_lens), seq_lens)
    prefix_lens = torch.zeros(len(seq_lens), dtype=torch.int32)
    tiles, members = [], []
    for places, num_blocks in groups:
        first, prefix_len = places[0], num_blocks * shape.block_size
        prefix_lens[places] = prefix_len
        for place in places[1:]:
            inputs.block_table[place, :num_blocks] = inputs.block_table[first, :num_blocks]
            inputs.keys[place][:prefix_len] = inputs.keys[first][:prefix_len]
            inputs.values[place][:prefix_len] = inputs.values[first][:prefix_len]
        for start in range(0, len(places), MAX_MEMBERS):
            some = places[start : start + MAX_MEMBERS]
            tiles.append([len(members), len(some), prefix_len])
            members += some
        tiles.append([UNWRITTEN, 0, UNWRITTEN])
    shared = SharedPrefixes(
        tiles=torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3).to(target.device),
        members=torch.tensor([*members, UNWRITTEN], dtype=torch.int32, device=target.device),
        prefix_lens=prefix_lens.to(target.device),
    )
    return inputs, shared


def attend(inputs, shared, parts, out=None):
    return _paged_attention_decode_triton(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.seq_lens,
        inputs.scale,
        parts,
        out,
        0,
        shared,
    )


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("parts", [(1, 1), (3, 1), (1, 3), (2, 7)], ids=str)
def test_groups_of_different_lengths_beside_sequences_that_share_nothing(target, block_size, parts):
    shape = Shape(block_size=block_size)
    lens = [200, 133, 70, 1, 0, 129, 65, 300]
    inputs, shared = shared_inputs(
        target, shape, lens, [([1, 5, 7], 128 // block_size), ([6, 2], 64 // block_size)]
    )

    out = attend(inputs, shared, Parts(*parts))

    truth = inputs.truth()
    assert worst_row_error(out, truth) < target.tolerance
    assert (out[4] == 0).all()


@on_each_device
@pytest.mark.parametrize(
    "shape",
    [
        Shape(group=1, num_kv_heads=1),
        Shape(group=4, num_kv_heads=1, head_dim=128),
        Shape(group=5, num_kv_heads=1),
        Shape(group=20, num_kv_heads=1, block_size=48),
        Shape(group=80, num_kv_heads=1, head_dim=16),
        Shape(num_kv_heads=1, head_dim=256),
    ],
    ids=str,
)
def test_more_members_than_a_tile_holds(target, shape):
    num_seqs = MAX_MEMBERS + 3
    lens = [3 * shape.block_size + 1 + place % 5 for place in range(num_seqs)]
    places = list(range(num_seqs - 1, -1, -1))
    inputs, shared = shared_inputs(target, shape, lens, [(places, 3)])

    out = attend(inputs, shared, Parts(num_own=1, num_shared=2))

    assert worst_row_error(out, inputs.truth()) < target.tolerance


@on_each_device
def test_prefix_that_ends_inside_a_tile_or_with_its_sequence_and_one_of_a_single_block(target):
    inputs, shared = shared_inputs(target, Shape(), [80, 120, 17, 40], [([0, 1], 5), ([2, 3], 1)])

    for num_shared in (1, 2, 4):
        out = attend(inputs, shared, Parts(num_own=2, num_shared=num_shared))
        assert worst_row_error(out, inputs.truth()) < target.tolerance


@on_each_device
def test_given_output_keeps_the_rows_of_empty_sequences(target):
    inputs, shared = shared_inputs(target, Shape(), [0, 70, 0, 71, 0], [([1, 3], 4)])
    out = target.randn(*inputs.queries.shape)
    before = out.clone()

    attend(inputs, shared, Parts(num_own=1, num_shared=2), out)

    is_empty = inputs.seq_lens == 0
    assert torch.equal(out[is_empty], before[is_empty])
    assert worst_row_error(out[~is_empty], inputs.truth()[~is_empty]) < target.tolerance


@pytest.mark.parametrize("num_own", [1, 3])
def test_of_the_programs_beside_prefixes_one_waits_for_all(monkeypatch, num_own):
    """The kernel behind them could otherwise read parts that are not there yet."""
    num_waits = []
    monkeypatch.setattr(
        paged_attention_decode_module, "wait_for_inputs", lambda _: num_waits.append(1)
    )
    # The last sequence has nothing for its last split.
    inputs, shared = shared_inputs(CPU, Shape(), [200, 133, 70], [([0, 1, 2], 4)])

    out = attend(inputs, shared, Parts(num_own=num_own, num_shared=2))

    assert len(num_waits) == 1
    assert worst_row_error(out, inputs.truth()) < CPU.tolerance


@pytest.mark.gpu
def test_parts_of_long_prefixes_are_awaited_and_give_equal_bits_each_time():
    """What sequences have alone is read long before the prefix is."""
    target = Target(device="cuda", dtype=torch.bfloat16)
    shape = Shape(num_kv_heads=8, head_dim=128, block_size=64)
    places = list(range(MAX_MEMBERS))
    lens = [4096 + 1 + place % 7 for place in places]
    inputs, shared = shared_inputs(target, shape, lens, [(places, 64)])
    plain = _paged_attention_decode_triton(
        *(inputs.queries, inputs.kv_cache, inputs.block_table, inputs.seq_lens, inputs.scale),
        Parts(num_own=1),
    )

    outs = [attend(inputs, shared, Parts(num_own=1, num_shared=4)) for _ in range(20)]

    assert worst_row_error(outs[0], plain.double()) < 2 * target.tolerance
    assert all(torch.equal(out, outs[0]) for out in outs)


def decode(inputs, shared, window=0):
    return paged_attention_decode(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.seq_lens,
        100,
        inputs.scale,
        None,
        window,
        shared,
    )


@on_each_device
def test_public_function_takes_shared_prefixes(target):
    inputs, shared = shared_inputs(target, Shape(), [70, 80], [([0, 1], 4)])

    assert worst_row_error(decode(inputs, shared), inputs.truth()) < target.tolerance


@pytest.mark.parametrize("name", ["tiles", "members", "prefix_lens"])
def test_wrong_types_and_shapes_are_refused(name):
    inputs, shared = shared_inputs(CPU, Shape(), [70, 80], [([0, 1], 4)])
    tensors = {each: getattr(shared, each) for each in ("tiles", "members", "prefix_lens")}

    for wrong in (tensors[name].long(), tensors[name][None]):
        with pytest.raises(ValueError, match=name):
            decode(inputs, SharedPrefixes(**{**tensors, name: wrong}))
    with pytest.raises(ValueError, match="window is 8"):
        decode(inputs, shared, window=8)


def test_prefixes_are_split_to_occupy_the_gpu():
    assert num_shared_splits(256, 8, 32, 132) == 2
    assert num_shared_splits(256, 8, 16, 132) == 1
    assert num_shared_splits(1, 1, 32, 132) == 10
    assert num_shared_splits(10_000, 8, 32, 132) == 1
