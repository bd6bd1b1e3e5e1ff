"""Ranks of one GPU, each a stream of this process, with ordinary tensors as peer memory."""

import os
import sys
import time

import torch

from kernels import all_reduce
from kernels.peer_memory import PeerMemory, buffer_bytes, peer_memory
from tests.kernels.targets import Target

DEADLINE = 30.0  # seconds
EPS = 1e-6


class Reduction:
    """The tensors of one collective, of all ranks; what `launch` needs is allocated before."""

    def __init__(self, target: Target, world_size: int, num_rows: int, hidden: int) -> None:
        self.x = [target.randn(num_rows, hidden) for _ in range(world_size)]
        self.residual, self.weight = target.randn(num_rows, hidden), target.randn(hidden)
        self.out = [torch.empty_like(self.residual) for _ in range(world_size)]
        self.total = [torch.empty_like(self.residual) for _ in range(world_size)]

    def launch(self, memory: PeerMemory, way: all_reduce.Way) -> None:
        """Launches one rank's kernel on the current stream; another way, if that has no room."""
        rank = memory.rank
        is_possible = way in all_reduce.possible_ways(len(self.residual), memory)
        all_reduce._launch(
            *(self.x[rank], self.residual, self.weight, EPS, self.out[rank], self.total[rank]),
            memory,
            way=way if is_possible else None,
        )


class SimulatedRanks:
    """Memories and streams of ranks whose kernels all run at once on this GPU.

    A rank takes at most its share of half of the GPU: its next kernel may already be there, which
    on a GPU of its own would not matter.
    """

    def __init__(
        self,
        target: Target,
        world_size: int,
        hidden: int,
        max_rows: int,
        *,
        num_programs: int | None = None,
    ) -> None:
        num_bytes = buffer_bytes(world_size, hidden, target.dtype, max_rows)
        buffers = [
            torch.zeros(num_bytes, dtype=torch.uint8, device="cuda") for _ in range(world_size)
        ]
        if num_programs is None:
            num_processors = torch.cuda.get_device_properties().multi_processor_count
            num_programs = num_processors // (2 * world_size)
        self.memories = [
            peer_memory(rank, buffers, hidden, target.dtype, max_rows, num_programs)
            for rank in range(world_size)
        ]
        self.streams = [torch.cuda.Stream() for _ in range(world_size)]
        torch.cuda.synchronize()

    def finish(self) -> None:
        """Waits for all ranks; ends the process if one hangs, since nothing else would end it."""
        end = time.monotonic() + DEADLINE
        while not all(stream.query() for stream in self.streams):
            if time.monotonic() > end:
                sys.stderr.write(
                    "a rank hangs: " + os.environ.get("PYTEST_CURRENT_TEST", "") + "\n"
                )
                os._exit(3)
            time.sleep(0.001)
