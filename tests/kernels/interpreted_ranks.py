"""Ranks as processes, whose kernels Triton interprets and whose peer memory is files they all map."""

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import tests.triton_mode  # noqa: F401  before the kernels
from kernels import all_reduce
from kernels.peer_memory import buffer_bytes, peer_memory

DEADLINE = 60.0  # seconds
MAX_ROWS = 5
EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective of a rank's sequence."""

    num_rows: int
    has_norm: bool
    is_one_shot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the ranks of a test do."""

    world_size: int
    hidden: int
    dtype: torch.dtype
    sequence: list[Collective]
    first_count: int = 0
    delayed_rank: int = -1


def inputs(run: Run, index: int, rank: int) -> torch.Tensor:
    """Returns the x of a rank in a collective; rank -1 is the residual and -2 the weight."""
    generator = torch.Generator().manual_seed(1000 * index + rank + 2)
    num_rows = run.sequence[index].num_rows
    shape = (run.hidden,) if rank == -2 else (num_rows, run.hidden)
    return torch.randn(shape, generator=generator).to(run.dtype)


def run_ranks(run: Run, folder: Path) -> list[list[list[torch.Tensor]]]:
    """Returns, of each rank and collective, what the collective gave."""
    num_bytes = buffer_bytes(run.world_size, run.hidden, run.dtype, MAX_ROWS)
    for rank in range(run.world_size):
        (folder / f"buffer{rank}").write_bytes(bytes(num_bytes))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_rank, args=(run, rank, folder)) for rank in range(run.world_size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + DEADLINE
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * run.world_size, f"exit codes {codes}; None did not end"
    return [torch.load(folder / f"results{rank}") for rank in range(run.world_size)]


def run_rank(run: Run, rank: int, folder: Path) -> None:
    """Runs one rank to its end, and saves its results."""
    torch.set_num_threads(1)
    num_bytes = buffer_bytes(run.world_size, run.hidden, run.dtype, MAX_ROWS)
    buffers = [
        torch.from_file(
            str(folder / f"buffer{other}"), shared=True, size=num_bytes, dtype=torch.uint8
        )
        for other in range(run.world_size)
    ]
    memory = peer_memory(
        rank,
        [buffer.data_ptr() for buffer in buffers],
        torch.device("cpu"),
        run.hidden,
        run.dtype,
        MAX_ROWS,
        buffers,
    )
    memory.counts.fill_(run.first_count)
    results = []
    for index, collective in enumerate(run.sequence):
        x = inputs(run, index, rank)
        if rank == run.delayed_rank:
            time.sleep(0.05)
        results.append(reduce(run, index, x, memory, collective))
    torch.save(results, folder / f"results{rank}")


def reduce(run, index, x, memory, collective):
    """Runs the kernel of a collective."""
    out, total = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    residual, weight = (
        (inputs(run, index, -1), inputs(run, index, -2)) if collective.has_norm else (None, None)
    )
    all_reduce._launch(
        *(x, residual, weight, EPS, out, total if collective.has_norm else None, memory),
        is_one_shot=collective.is_one_shot,
    )
    return [out, total] if collective.has_norm else [out]
