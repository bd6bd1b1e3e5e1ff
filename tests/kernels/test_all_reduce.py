"""The all-reduce: its kernels interpreted, with a process for each rank, and gloo's way."""

import pytest
import torch

from kernels import reference
from kernels.all_reduce import Way, all_reduce, all_reduce_add_rms_norm
from kernels.peer_memory import Peers, buffer_bytes, copy_bytes, peer_memory
from tests.kernels.interpreted_ranks import (
    COPIES,
    EPS,
    GROUP,
    MAX_ROWS,
    Collective,
    Run,
    inputs,
    run_ranks,
)
from tests.kernels.targets import Target, worst_row_error


def sequence(*ways):
    shapes = [(1, True), (MAX_ROWS, True), (2, False), (1, False), (3, True)]
    return tuple(
        Collective(way=way, num_rows=num_rows, has_norm=has_norm)
        for way in ways
        for num_rows, has_norm in shapes
    )


def rounds(way):
    return (Collective(way=way, num_rows=1, has_norm=False),) * 6


def copies(num_rounds):
    return tuple(
        Collective(way=COPIES, num_rows=1 + place % MAX_ROWS, has_norm=True)
        for place in range(num_rounds)
    )


MIXED = sequence(
    Way.TAGGED_WORDS, Way.FLAGGED_ROWS, Way.TWO_SHOTS, Way.TAGGED_WORDS, Way.FLAGGED_ROWS
)
# Each on memory of its own; all of them in the processes of one start.
RUNS = {
    "float32": Run(hidden=40, dtype=torch.float32, sequence=MIXED),
    "float16": Run(hidden=40, dtype=torch.float16, sequence=MIXED),
    "group-float32": Run(hidden=40, dtype=torch.float32, sequence=sequence(GROUP)),
    "group-bfloat16": Run(hidden=40, dtype=torch.bfloat16, sequence=sequence(GROUP)),
    "copies-float32": Run(hidden=40, dtype=torch.float32, sequence=copies(12)),
    "copies-float16": Run(hidden=40, dtype=torch.float16, sequence=copies(6)),
    "copies-slow": Run(hidden=16, dtype=torch.float32, sequence=copies(12), delayed_rank=0),
    "slow": Run(hidden=16, dtype=torch.float32, sequence=MIXED, delayed_rank=1),
    "tags-16": Run(
        hidden=16, dtype=torch.float16, sequence=rounds(Way.TAGGED_WORDS), first_count=2**16 - 4
    ),
    "tags-32": Run(
        hidden=16, dtype=torch.float32, sequence=rounds(Way.TAGGED_WORDS), first_count=2**32 - 4
    ),
    "totals-31": Run(
        hidden=16, dtype=torch.float32, sequence=rounds(Way.TWO_SHOTS), first_count=2**31 - 4
    ),
    "rows-31": Run(
        hidden=16, dtype=torch.float32, sequence=rounds(Way.FLAGGED_ROWS), first_count=2**31 - 4
    ),
}


@pytest.fixture(scope="module", params=[2, 3])
def interpreted_ranks(request, tmp_path_factory):
    """Gives the number of ranks, and by run what each rank got."""
    results = run_ranks(request.param, list(RUNS.values()), tmp_path_factory.mktemp("ranks"))
    return request.param, dict(zip(RUNS, zip(*results, strict=True), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_all_ranks_hold_the_sum_of_all_in_equal_bits(interpreted_ranks, name):
    (world_size, results), run = interpreted_ranks, RUNS[name]
    tolerance = Target(device="cpu", dtype=run.dtype).tolerance
    for place, collective in enumerate(run.sequence):
        parts = [inputs(run, place, rank) for rank in range(world_size)]
        residual, weight = inputs(run, place, -1), inputs(run, place, -2)
        expected, total = reference.all_reduce_add_rms_norm(parts, residual, weight, EPS)
        for of_rank in results[name]:
            if collective.has_norm:
                assert torch.equal(of_rank[place][1], total), collective
                assert worst_row_error(of_rank[place][0], expected) < tolerance, collective
            else:
                assert torch.equal(of_rank[place][0], reference.all_reduce(parts)), collective
            for ours, first in zip(of_rank[place], results[name][0][place], strict=True):
                assert torch.equal(ours, first), collective


def test_twins_add_in_float32_and_round_once():
    # In bfloat16, 256 + 1 is 256.
    parts = [torch.tensor([[256.0]]).bfloat16(), torch.tensor([[1.0]]).bfloat16()]
    residual = torch.tensor([[1.0]]).bfloat16()
    assert reference.all_reduce([*parts, residual]).item() == 258
    weight = torch.ones(1).bfloat16()
    assert reference.all_reduce_add_rms_norm(parts, residual, weight, 0.0)[1].item() == 258


def test_sums_of_float32_are_in_the_order_of_ranks():
    parts = [torch.tensor([[value]]) for value in (1e8, -1e8, 1.0)]
    assert reference.all_reduce(parts).item() == 1
    assert reference.all_reduce(parts[::-1]).item() == 0


def test_the_buffer_is_bounded():
    assert buffer_bytes(2, 4096, torch.bfloat16, 1024) < 30e6
    assert copy_bytes(2, 4096, torch.bfloat16, 4096) < 135e6


def test_wrong_tensors_are_refused_by_name_and_value():
    memory = peer_memory(0, [torch.zeros(8)], 8, torch.float32, 4, 1)
    peers, x, weight = Peers(group=None, memory=memory), torch.randn(2, 8), torch.randn(8)
    with pytest.raises(ValueError, match=r"x has shape \(2, 7\); expected \(any, 8\)"):
        all_reduce(x[:, :7], peers)
    with pytest.raises(ValueError, match=r"x has dtype torch.float16; supported: torch.float32"):
        all_reduce(x.half(), peers)
    with pytest.raises(ValueError, match=r"residual has shape \(1, 8\); expected \(2, 8\)"):
        all_reduce_add_rms_norm(x, x[:1], weight, EPS, peers)
    with pytest.raises(ValueError, match=r"weight has shape \(7,\); expected \(8\)"):
        all_reduce_add_rms_norm(x, x, weight[:7], EPS, peers)
