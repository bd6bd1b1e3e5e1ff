"""The kernels of the all-reduce, interpreted, with a process for each rank."""

import pytest
import torch

from kernels import reference
from tests.kernels.interpreted_ranks import EPS, MAX_ROWS, Collective, Run, inputs, run_ranks
from tests.kernels.targets import Target, worst_row_error

SEQUENCE = [
    Collective(num_rows=num_rows, has_norm=has_norm, is_one_shot=is_one_shot)
    for is_one_shot in (True, False, True)
    for num_rows, has_norm in ((1, True), (MAX_ROWS, True), (2, False), (1, False), (3, True))
]


def check_results(run, results):
    """All ranks hold the sums, in equal bits."""
    tolerance = Target(device="cpu", dtype=run.dtype).tolerance
    for index, collective in enumerate(run.sequence):
        parts = [inputs(run, index, rank) for rank in range(run.world_size)]
        if collective.has_norm:
            residual, weight = inputs(run, index, -1), inputs(run, index, -2)
            expected, total = reference.all_reduce_add_rms_norm(parts, residual, weight, EPS)
        for of_rank in results:
            if collective.has_norm:
                assert torch.equal(of_rank[index][1], total), collective
                assert worst_row_error(of_rank[index][0], expected) < tolerance, collective
            else:
                assert torch.equal(of_rank[index][0], reference.all_reduce(parts)), collective
            assert all(map(torch.equal, of_rank[index], results[0][index])), collective


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_hold_the_sum_of_all(tmp_path, world_size, dtype):
    run = Run(world_size=world_size, hidden=40, dtype=dtype, sequence=SEQUENCE)
    check_results(run, run_ranks(run, tmp_path))


def test_a_slow_rank_is_waited_for(tmp_path):
    run = Run(world_size=2, hidden=16, dtype=torch.float32, sequence=SEQUENCE * 2, delayed_rank=1)
    check_results(run, run_ranks(run, tmp_path))


@pytest.mark.parametrize("bits", [16, 32])
def test_counts_of_rounds_wrap_around(tmp_path, bits):
    run = Run(
        world_size=2,
        hidden=16,
        dtype=torch.float16 if bits == 16 else torch.float32,
        sequence=[
            Collective(num_rows=1, has_norm=False, is_one_shot=i % 2 == 0) for i in range(12)
        ],
        first_count=2**bits - 4,
    )
    check_results(run, run_ranks(run, tmp_path))
