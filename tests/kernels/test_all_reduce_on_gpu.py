"""The kernels of the all-reduce on one GPU: ranks as streams, and as processes that take turns."""

import random
import time

import pytest
import torch

from kernels import reference
from kernels.all_reduce import Way
from tests.kernels.gpu_ranks import each_number_of_ranks, run_gpu_ranks
from tests.kernels.simulated_ranks import DEADLINE, EPS, Reduction, SimulatedRanks
from tests.kernels.targets import Target, worst_row_error

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
BFLOAT16 = Target(device="cuda", dtype=torch.bfloat16)
SHAPES = [1, 3, 8, 40]
on_each_type = pytest.mark.parametrize(
    "target",
    [
        pytest.param(Target(device="cuda", dtype=dtype), id=str(dtype).removeprefix("torch."))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ],
)
each_way = pytest.mark.parametrize("way", Way, ids=lambda way: way.value)


def launch_all(ranks, reduction, way):
    for memory, stream in zip(ranks.memories, ranks.streams, strict=True):
        with torch.cuda.stream(stream):
            reduction.launch(memory, way)


def check(reduction, tolerance):
    args = reduction.x, reduction.residual, reduction.weight, EPS
    expected, total = reference.all_reduce_add_rms_norm(*args)
    for out, our_total in zip(reduction.out, reduction.total, strict=True):
        assert torch.equal(our_total, total)
        assert torch.equal(out, reduction.out[0])
        assert worst_row_error(out, expected) < tolerance


@on_each_type
@each_way
@pytest.mark.parametrize(("world_size", "hidden"), [(2, 4096), (3, 1000), (4, 5120)])
def test_all_ranks_hold_the_sum_of_all_in_equal_bits(target, way, world_size, hidden):
    ranks = SimulatedRanks(target, world_size, hidden, max(SHAPES))
    for num_rows in SHAPES * 2:
        reduction = Reduction(target, world_size, num_rows, hidden)
        torch.cuda.synchronize()
        launch_all(ranks, reduction, way)
        ranks.finish()
        check(reduction, target.tolerance)


@each_way
@pytest.mark.parametrize("num_ahead", [1, 25], ids=["in step", "ahead"])
def test_a_rank_may_be_late_and_another_ahead(way, num_ahead):
    """Rank 0's next launches are in its stream before the other has begun."""
    choose = random.Random(0)
    # Of 8 rows, a program has two side by side, of fewer one.
    ranks = SimulatedRanks(BFLOAT16, 2, 4096, 8, num_programs=4)
    reductions = [Reduction(BFLOAT16, 2, choose.choice((1, 2, 8)), 4096) for _ in range(200)]
    torch.cuda.synchronize()
    for first in range(0, len(reductions), num_ahead):
        for memory, stream in zip(ranks.memories, ranks.streams, strict=True):
            with torch.cuda.stream(stream):
                for reduction in reductions[first : first + num_ahead]:
                    if choose.random() < 0.3:
                        torch.cuda._sleep(choose.randrange(300_000))  # cycles
                    reduction.launch(memory, way)
    ranks.finish()
    for reduction in reductions:
        check(reduction, BFLOAT16.tolerance)


@each_way
def test_time_in_collectives_is_the_wait_for_a_late_rank_and_is_read_meanwhile(way):
    ranks = SimulatedRanks(BFLOAT16, 2, 4096, 8)
    reduction = Reduction(BFLOAT16, 2, 4, 4096)
    launch_all(ranks, reduction, way)
    ranks.finish()
    before = [memory.collective_seconds() for memory in ranks.memories]
    assert all(0 < seconds < DEADLINE for seconds in before)

    (first, late), (of_first, of_late) = ranks.memories, ranks.streams
    with torch.cuda.stream(of_first):
        reduction.launch(first, way)
    time.sleep(0.2)
    # Its kernel runs until the other rank's does.
    assert first.collective_seconds() == before[0]
    with torch.cuda.stream(of_late):
        reduction.launch(late, way)
    ranks.finish()

    after = [memory.collective_seconds() for memory in ranks.memories]
    waited, did_not_wait = (end - begin for begin, end in zip(before, after, strict=True))
    assert 0.1 < waited < DEADLINE
    assert 0 < did_not_wait < waited / 2
    check(reduction, BFLOAT16.tolerance)


def test_a_thousand_replays_among_eager_launches_are_equal_in_bits():
    """An odd number of collectives, so that each replay finds the other of the two buffers."""
    ranks = SimulatedRanks(BFLOAT16, 2, 4096, 8, num_programs=4)
    reductions = [Reduction(BFLOAT16, 2, num_rows, 4096) for num_rows in (1, 8, 2, 1, 4, 8, 1)]
    eager = Reduction(BFLOAT16, 2, 2, 4096)
    words, rows, two = Way
    ways = [words, two, words, rows, words, rows, words]
    torch.cuda.synchronize()
    for reduction, way in zip(reductions, ways, strict=True):
        launch_all(ranks, reduction, way)
    ranks.finish()
    for reduction in reductions:
        check(reduction, BFLOAT16.tolerance)
    expected = [[out.clone() for out in reduction.out] for reduction in reductions]
    num_wrong = torch.zeros(2, dtype=torch.int64, device="cuda")
    launch_all(ranks, eager, Way.TAGGED_WORDS)
    ranks.finish()
    graphs = []
    for memory, stream in zip(ranks.memories, ranks.streams, strict=True):
        graph, rank = torch.cuda.CUDAGraph(), memory.rank
        with torch.cuda.graph(graph, stream=stream):
            for reduction, way in zip(reductions, ways, strict=True):
                reduction.out[rank].fill_(torch.nan)
                reduction.launch(memory, way)
            for reduction, right in zip(reductions, expected, strict=True):
                num_wrong[rank] += (reduction.out[rank] != right[rank]).sum()
        graphs.append(graph)
    torch.cuda.synchronize()
    for replay in range(1000):
        for graph, stream in zip(graphs, ranks.streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        if replay % 3 == 0:
            launch_all(ranks, eager, Way.TAGGED_WORDS)
        if replay % 50 == 0:
            ranks.finish()
    ranks.finish()
    assert num_wrong.tolist() == [0, 0]
    check(eager, BFLOAT16.tolerance)
    assert ranks.memories[0].counts[0, 0].item() == 4 + 1 + 1000 * 4 + 334


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tags_wrap_around(dtype):
    target = Target(device="cuda", dtype=dtype)
    ranks = SimulatedRanks(target, 2, 256, 2)
    for memory in ranks.memories:
        memory.counts.fill_(2 ** (16 if dtype == torch.bfloat16 else 32) - 4)
    for _ in range(8):
        reduction = Reduction(target, 2, 2, 256)
        torch.cuda.synchronize()
        launch_all(ranks, reduction, Way.TAGGED_WORDS)
        ranks.finish()
        check(reduction, target.tolerance)


def test_processes_share_symmetric_memory(tmp_path):
    """On one GPU, which runs the kernels of only one process at a time."""
    run_gpu_ranks(2, tmp_path, num_collectives=12, num_replays=5)


@pytest.mark.multi_gpu
@each_number_of_ranks
def test_ranks_agree_with_nccl_under_delays_and_replays(tmp_path, num_ranks):
    run_gpu_ranks(num_ranks, tmp_path, num_collectives=300, num_replays=1000)
