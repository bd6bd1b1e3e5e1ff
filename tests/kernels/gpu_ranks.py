"""Ranks as processes with GPUs, each of its own if there are enough, which check their sums."""

import os
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from kernels import reference
from kernels.all_reduce import _launch, all_reduce, all_reduce_add_rms_norm, possible_ways
from kernels.copied_all_reduce import begin_all_reduce, end_all_reduce_add_rms_norm
from kernels.peer_memory import Peers, connect_peers
from tests.kernels.processes import finish
from tests.kernels.targets import Target, worst_row_error

DEADLINE = 200.0  # seconds
EPS = 1e-6
HIDDEN, MAX_ROWS, MAX_COPIED_ROWS = 4096, 200, 300
# The last two are more than there are multiprocessors, so that programs have two rows.
NUM_ROWS = (1, 2, 8, 64, 133, 200)


def on_gpus(number: int) -> list[pytest.MarkDecorator]:
    """Returns the marks of a test of so many ranks with a GPU each."""
    too_few = torch.cuda.device_count() < number
    return [pytest.mark.multi_gpu, pytest.mark.skipif(too_few, reason=f"needs {number} GPUs")]


each_number_of_ranks = pytest.mark.parametrize(
    "num_ranks", [pytest.param(number, marks=on_gpus(number)) for number in (2, 4, 8)]
)


def run_gpu_ranks(world_size: int, folder: Path, num_collectives: int, num_replays: int) -> None:
    """Runs the ranks, and fails unless all end well before the deadline."""
    context = multiprocessing.get_context("spawn")
    arguments = (world_size, str(folder), num_collectives, num_replays)
    processes = [
        context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    finish(processes, DEADLINE)


def run_rank(
    rank: int, world_size: int, folder: str, num_collectives: int, num_replays: int
) -> None:
    """Runs one rank to its end."""
    has_gpu_each = torch.cuda.device_count() >= world_size
    if not has_gpu_each:
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    torch.cuda.set_device(rank if has_gpu_each else 0)
    dist.init_process_group(
        # NCCL takes no two ranks on one GPU.
        "nccl" if has_gpu_each else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
    )
    for dtype in (torch.float32, torch.bfloat16):
        target = Target(device="cuda", dtype=dtype)
        peers = connect_peers(
            None,
            torch.device("cuda"),
            HIDDEN,
            dtype,
            max_rows=MAX_ROWS,
            max_copied_rows=MAX_COPIED_ROWS,
        )
        assert peers.memory is not None, peers.obstacle
        check_eager(target, peers, num_collectives)
        check_replays(target, peers, num_replays)
        assert (peers.copies is not None) == (world_size == 2)
        if peers.copies is not None:
            check_copies(target, peers, num_collectives // 12, num_replays // 4)
        if has_gpu_each:
            check_fallback(target, peers)
        sys.stdout.write(f"rank {rank}, {dtype}: done\n")
    dist.barrier()
    torch.cuda.synchronize()
    dist.destroy_process_group()


def gather(x: torch.Tensor, world_size: int) -> list[torch.Tensor]:
    """Returns the x of all ranks."""
    sent = x if dist.get_backend() == "nccl" else x.cpu()
    sent = sent.view(torch.uint8)
    parts = [torch.empty_like(sent) for _ in range(world_size)]
    dist.all_gather(parts, sent)
    return [part.to(x.device).view(x.dtype) for part in parts]


def check_eager(target: Target, peers: Peers, num_collectives: int) -> None:
    """Compares sums with those of the process group, while ranks are late at random."""
    memory = peers.memory
    same, own = random.Random(0), random.Random(memory.rank + 1)
    torch.manual_seed(7)
    weight = target.randn(HIDDEN)
    for index in range(num_collectives):
        num_rows = same.choice(NUM_ROWS)
        torch.manual_seed(index)
        residual = target.randn(num_rows, HIDDEN)
        torch.manual_seed(1000 * index + memory.rank)
        x = target.randn(num_rows, HIDDEN)
        parts = gather(x, memory.world_size)
        out, total = torch.empty_like(x), torch.empty_like(x)
        if own.random() < 0.3:
            torch.cuda._sleep(own.randrange(1_000_000))  # cycles
        way = same.choice(possible_ways(num_rows, memory))
        _launch(x, residual, weight, EPS, out, total, memory, way=way)
        expected, right = reference.all_reduce_add_rms_norm(parts, residual, weight, EPS)
        assert torch.equal(total, right), (index, num_rows, way)
        assert worst_row_error(out, expected) < target.tolerance
        for of_rank in gather(out, memory.world_size):
            assert torch.equal(of_rank, out), (index, num_rows, way)


def check_replays(target: Target, peers: Peers, num_replays: int) -> None:
    """Replays a graph of an odd number of collectives; each replay gives the bits of the first."""
    memory = peers.memory
    torch.manual_seed(memory.rank)
    inputs = [target.randn(num_rows, HIDDEN) for num_rows in (1, 200, 64, 1, 2)]
    torch.manual_seed(99)
    residuals, weight = [target.randn(*x.shape) for x in inputs], target.randn(HIDDEN)

    def all_collectives():
        fused = zip(inputs, residuals, strict=True)
        outs = [all_reduce_add_rms_norm(x, r, weight, EPS, peers)[0] for x, r in fused]
        return outs + [all_reduce(x.clone(), peers) for x in inputs[:2]]

    expected = [out.clone() for out in all_collectives()]
    torch.cuda.synchronize()
    num_wrong = torch.zeros(1, dtype=torch.int64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for out, right in zip(all_collectives(), expected, strict=True):
            num_wrong += (out != right).sum()
            out.fill_(torch.nan)
    for _ in range(num_replays):
        graph.replay()
    assert num_wrong.item() == 0
    for of_rank in gather(expected[0], memory.world_size):
        assert torch.equal(of_rank, expected[0])


class CopiedSums:
    """Three sums of each of two lanes, as a step has them, and what is right."""

    def __init__(self, target: Target, peers: Peers) -> None:
        memory = peers.copies
        self.peers = peers
        self.random = random.Random(memory.rank + 1)
        torch.manual_seed(7)
        self.weight, self.start = target.randn(HIDDEN), target.randn(1, HIDDEN)
        self.inputs, self.right = [], []
        for place in range(6):
            num_rows = MAX_COPIED_ROWS if place % 2 == 0 else MAX_ROWS + place
            torch.manual_seed(place)
            residual = target.randn(num_rows, HIDDEN)
            torch.manual_seed(100 + place + 1000 * memory.rank)
            x = target.randn(num_rows, HIDDEN)
            parts = gather(x, memory.world_size)
            self.inputs.append((x, residual))
            self.right.append(reference.all_reduce_add_rms_norm(parts, residual, self.weight, EPS))

    def run(self, *, is_late: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns what the sums of a step give; both of a number have begun before one ends."""
        # As the embedding's, which keeps ranks from being a step ahead.
        all_reduce(self.start.clone(), self.peers)
        ended = []
        for number in range(3):
            begun = []
            for lane, (x, _) in enumerate(self.inputs[2 * number : 2 * number + 2]):
                if is_late and self.random.random() < 0.3:
                    torch.cuda._sleep(self.random.randrange(1_000_000))  # cycles
                begun.append(begin_all_reduce(x, self.peers, lane, number))
                assert begun[-1].buffer == number % 2
            for lane, part in enumerate(begun):
                residual = self.inputs[2 * number + lane][1]
                args = residual, self.weight, EPS, self.peers
                ended.append(end_all_reduce_add_rms_norm(part, *args))
        return ended


def check_copies(target: Target, peers: Peers, num_steps: int, num_replays: int) -> None:
    """Compares sums by copies with the right ones: while ranks are late, then in a graph."""
    sums = CopiedSums(target, peers)
    for number in range(num_steps):
        for (out, total), (normed, right) in zip(sums.run(is_late=True), sums.right, strict=True):
            assert torch.equal(total, right), number
            assert worst_row_error(out, normed) < target.tolerance
            if number == 0:
                for of_rank in gather(out, peers.world_size):
                    assert torch.equal(of_rank, out)
    torch.cuda.synchronize()
    num_wrong = torch.zeros(1, dtype=torch.int64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for (_, total), (_, right) in zip(sums.run(is_late=False), sums.right, strict=True):
            num_wrong += (total != right).sum()
            total.fill_(torch.nan)
    for _ in range(num_replays):
        graph.replay()
    assert num_wrong.item() == 0


def check_fallback(target: Target, peers: Peers) -> None:
    """More rows than the peer memory holds, and no peer memory, take NCCL."""
    without = Peers(group=peers.group)
    for num_rows, chosen in ((MAX_COPIED_ROWS + 1, peers), (2, without)):
        torch.manual_seed(peers.memory.rank)
        x = target.randn(num_rows, HIDDEN)
        expected = reference.all_reduce(gather(x, peers.world_size))
        assert worst_row_error(all_reduce(x.clone(), chosen), expected) < target.tolerance
