"""What the kernel is told of shared prefixes."""

import dataclasses

import numpy as np
import torch

from engine_service.core.types import int32_array
from engine_service.worker.prefix_tiles import PrefixTiles, max_tiles, unpack
from engine_service.worker.rows import Rows
from kernels.shared_prefix import MAX_MEMBERS
from tests.engine_service.plans import Row, make_plan

NUM_SLOTS = 101


def tiles_of(rows, *groups):
    packed = [number for tokens, slots in groups for number in (len(slots), tokens, *slots)]
    plan = dataclasses.replace(make_plan(rows), shared_prefixes=int32_array(packed))
    return PrefixTiles.of(plan, Rows.of(plan), NUM_SLOTS)


def test_rows_that_decode_are_found_by_their_slots():
    rows = [Row(7, 90, 1), Row(2, 40, 3), Row(5, 80, 1), Row(3, 80, 1), Row(9, 50, 1)]

    tiles = tiles_of(rows, (48, [5, 2, 7, 100]), (32, [9, 3]))

    # Rows of one token come first, so slot 2 is the last.
    assert tiles.tiles.tolist() == [[0, 2, 48], [2, 2, 32]]
    assert tiles.members.tolist() == [1, 0, 3, 2]
    assert tiles.prefix_lens.tolist() == [48, 48, 32, 32, 0]


def test_group_with_one_member_left_is_none():
    assert tiles_of([Row(7, 90, 1), Row(2, 40, 3)], (32, [7, 2])) is None
    assert tiles_of([Row(7, 90, 1), Row(2, 40, 1)]) is None


def test_large_group_takes_several_tiles():
    num_rows = 2 * MAX_MEMBERS + 1
    tiles = tiles_of([Row(slot, 90, 1) for slot in range(num_rows)], (64, range(num_rows)))

    assert tiles.tiles.tolist() == [
        [0, MAX_MEMBERS, 64],
        [MAX_MEMBERS, MAX_MEMBERS, 64],
        [2 * MAX_MEMBERS, 1, 64],
    ]


def test_what_is_sent_is_what_the_kernel_takes():
    tiles = tiles_of([Row(slot, 90, 1) for slot in range(5)], (64, [1, 3]))

    shared = unpack(torch.from_numpy(tiles.packed(8)), 8)

    assert shared.tiles.shape == (max_tiles(8), 3)
    assert shared.tiles[0].tolist() == [0, 2, 64]
    assert not shared.tiles[1:].any()
    assert shared.members[:2].tolist() == [1, 3]
    assert shared.prefix_lens.tolist() == [0, 64, 0, 64, 0, 0, 0, 0]
    assert {tensor.dtype for tensor in dataclasses.astuple(shared)} == {torch.int32}


def test_any_groups_fit():
    for num_rows in (1, 16, 100, 256):
        nothing = np.zeros(0, dtype=np.int64)
        full = PrefixTiles(
            tiles=np.ones((max_tiles(num_rows), 3), dtype=np.int64),
            members=np.ones(num_rows, dtype=np.int64),
            prefix_lens=nothing,
        )
        assert unpack(torch.from_numpy(full.packed(num_rows)), num_rows).tiles.all()
