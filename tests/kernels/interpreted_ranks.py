"""Ranks as processes whose kernels Triton interprets, with files they all map as memory."""

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

import tests.triton_mode  # noqa: F401  before the kernels
from kernels import all_reduce
from kernels.all_reduce import Way
from kernels.copied_all_reduce import begin_all_reduce, end_all_reduce_add_rms_norm
from kernels.peer_memory import (
    Peers,
    buffer_bytes,
    connect_peers,
    copy_bytes,
    copy_memory,
    peer_memory,
)
from tests.kernels.processes import finish

DEADLINE = 90.0  # seconds
MAX_ROWS = 5
# Fewer than rows, so that a program has several.
MAX_PROGRAMS = 2
EPS = 1e-6
COPIES, GROUP = "copies", "process group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective of a rank's sequence, by a kernel or by the process group."""

    way: Way | str
    num_rows: int
    has_norm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A sequence of collectives on fresh memory."""

    hidden: int
    dtype: torch.dtype
    sequence: tuple[Collective, ...]
    first_count: int = 0
    delayed_rank: int = -1


def inputs(run: Run, index: int, rank: int) -> torch.Tensor:
    """Returns the x of a rank in a collective; rank -1 is the residual and -2 the weight."""
    generator = torch.Generator().manual_seed(1000 * index + rank + 2)
    num_rows = run.sequence[index].num_rows
    shape = (run.hidden,) if rank == -2 else (num_rows, run.hidden)
    return torch.randn(shape, generator=generator).to(run.dtype)


def run_ranks(world_size: int, runs: list[Run], folder: Path) -> list[list[list[list]]]:
    """Returns, of each rank, run and collective, what the collective gave."""
    for rank in range(world_size):
        for index, run in enumerate(runs):
            for name, size in (("buffer", buffer_bytes), ("copies", copy_bytes)):
                num_bytes = size(world_size, run.hidden, run.dtype, MAX_ROWS)
                (folder / f"{name}{index}.{rank}").write_bytes(bytes(num_bytes))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_rank, args=(world_size, runs, rank, folder))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    finish(processes, DEADLINE)
    return [torch.load(folder / f"results{rank}") for rank in range(world_size)]


def run_rank(world_size: int, runs: list[Run], rank: int, folder: Path) -> None:
    """Runs one rank to its end, and saves its results."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    by_group = connect_peers(None, torch.device("cpu"), 1, torch.float32)
    assert by_group.memory is None
    assert by_group.obstacle == "the ranks compute on a cpu"
    results = []
    for index, run in enumerate(runs):
        peers = map_memory(world_size, run, rank, folder, index)
        results.append([])
        for place, collective in enumerate(run.sequence):
            if rank == run.delayed_rank:
                time.sleep(0.05)
            chosen = by_group if collective.way == GROUP else peers
            results[-1].append(reduce(run, place, rank, chosen))
    torch.save(results, folder / f"results{rank}")
    dist.destroy_process_group()


def map_memory(world_size: int, run: Run, rank: int, folder: Path, index: int) -> Peers:
    """Returns the peers of a rank, with two files as the buffers of each."""

    def buffers(name):
        paths = [folder / f"{name}{index}.{i}" for i in range(world_size)]
        return [
            torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
            for path in paths
        ]

    sizes = run.hidden, run.dtype
    memory = peer_memory(rank, buffers("buffer"), *sizes, MAX_ROWS, MAX_PROGRAMS)
    memory.counts.fill_(run.first_count)
    copies = copy_memory(rank, buffers("copies"), *sizes, (1, MAX_ROWS), MAX_PROGRAMS)
    return Peers(group=None, memory=memory, copies=copies)


def reduce(run: Run, place: int, rank: int, peers: Peers) -> list[torch.Tensor]:
    """Returns what one collective gives."""
    collective, x = run.sequence[place], inputs(run, place, rank)
    residual, weight = inputs(run, place, -1), inputs(run, place, -2)
    if collective.way == GROUP:
        if collective.has_norm:
            return list(all_reduce.all_reduce_add_rms_norm(x, residual, weight, EPS, peers))
        return [all_reduce.all_reduce(x, peers)]
    if collective.way == COPIES:
        lane, index = place % 2, place // 2
        part = begin_all_reduce(x, peers, lane, index)
        assert part.buffer == index % 2
        return list(end_all_reduce_add_rms_norm(part, residual, weight, EPS, peers))
    out, total = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    norm = (residual, weight) if collective.has_norm else (None, None)
    results = [out, total] if collective.has_norm else [out, None]
    all_reduce._launch(*(x, *norm, EPS, *results, peers.memory), way=collective.way)
    return [result for result in results if result is not None]
