"""Times the sum over ranks on GPUs: `python -m benchmarks.all_reduce`.

Each rank is a process with a GPU of its own. A measurement is a CUDA graph of calls one behind the
other, replayed without a pause; the median of the replays counts, divided by the calls. With
`--one-gpu` two ranks are two streams of one GPU, whose memory takes the place of the peer's: that
shows what the kernels take without a link, and is no measurement of peers.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
import triton

from benchmarks.provenance import commit
from kernels import reference
from kernels.all_reduce import Way, _launch, possible_ways
from kernels.peer_memory import PeerMemory, buffer_bytes, connect_peers, peer_memory
from kernels.rms_norm import add_rms_norm

DTYPE = torch.bfloat16
EPS = 1e-6
NUM_ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048)
HIDDEN = (4096, 5120)
NUM_CALLS, NUM_REPLAYS, NUM_UNTIMED = 40, 25, 5
DEADLINE = 540.0  # seconds

Call = Callable[[torch.Tensor], Any]


def randn(*shape: int) -> torch.Tensor:
    """Draws a normal tensor on the GPU."""
    return torch.randn(*shape, dtype=DTYPE, device="cuda")


class Reduction:
    """One rank's tensors of a measurement, and our ways to reduce them."""

    def __init__(self, memory: PeerMemory, num_rows: int, hidden: int) -> None:
        torch.manual_seed(memory.rank)
        self.memory = memory
        self.inputs = list(randn(NUM_CALLS, num_rows, hidden).unbind(0))
        torch.manual_seed(1000)
        self.residual, self.weight = randn(num_rows, hidden), randn(hidden)
        # Allocated before, as an allocation may wait for a kernel that waits for a peer.
        self.out, self.total = torch.empty_like(self.residual), torch.empty_like(self.residual)

    def fused(self, x: torch.Tensor, way: Way) -> None:
        """Adds, and normalises the sum with the residual."""
        tensors = (x, self.residual, self.weight, EPS, self.out, self.total)
        _launch(*tensors, self.memory, way=way)

    def plain(self, x: torch.Tensor, way: Way) -> None:
        """Adds."""
        _launch(x, None, None, 0.0, self.out, None, self.memory, way=way)

    def ways(self) -> dict[str, Call]:
        """Returns our ways by name."""
        return {
            f"{name}, {way.value}": partial(call, way=way)
            for name, call in (("fused", self.fused), ("plain", self.plain))
            for way in possible_ways(len(self.residual), self.memory)
        }

    def check(self, way: str, parts: list[torch.Tensor]) -> None:
        """Raises RuntimeError unless the last call gave the sum of the parts."""
        if way.startswith("fused"):
            expected = reference.all_reduce_add_rms_norm(parts, self.residual, self.weight, EPS)[1]
            given = self.total
        else:
            expected, given = reference.all_reduce(parts), self.out
        if not torch.equal(given, expected):
            raise RuntimeError(f"{way} is wrong for {len(given)} rows on rank {self.memory.rank}")


def peer_ways(reduction: Reduction) -> dict[str, Call]:
    """Returns NCCL's ways and torch's."""
    group = dist.group.WORLD
    assert group is not None
    shared = symmetric_memory.empty(*reduction.out.shape, dtype=DTYPE, device=reduction.out.device)
    symmetric_memory.rendezvous(shared, group)
    shared.zero_()

    def nccl_and_norm(x: torch.Tensor) -> None:
        dist.all_reduce(x)
        add_rms_norm(x, reduction.residual, reduction.weight, EPS)

    return {
        "NCCL": dist.all_reduce,
        "NCCL, then norm": nccl_and_norm,
        "torch one-shot": lambda _: torch.ops.symm_mem.one_shot_all_reduce(
            shared, "sum", group.group_name
        ),
    }


def capture(
    way: Call, inputs: list[torch.Tensor], stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    """Returns a graph of one call for each input."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for x in inputs:
            way(x)
    return graph


def time_us(
    graphs: list[torch.cuda.CUDAGraph], streams: list[torch.cuda.Stream], num_calls: int
) -> float:
    """Returns the microseconds of one call in the first of graphs that run at the same time."""
    events = []
    for _ in range(NUM_REPLAYS + NUM_UNTIMED):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                if stream is streams[0]:
                    events.append(torch.cuda.Event(enable_timing=True))
                    events[-1].record()
                graph.replay()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in pairwise(events)][NUM_UNTIMED:]
    return round(sorted(times)[len(times) // 2] * 1e3 / num_calls, 2)


def measure_rank(rank: int, num_ranks: int, folder: str) -> None:
    """Measures with a GPU for each rank; the first writes the rows."""
    torch.cuda.set_device(rank)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl", init_method=store, rank=rank, world_size=num_ranks)
    rows, stream = [], torch.cuda.Stream()
    for hidden in HIDDEN:
        peers = connect_peers(
            None, torch.device("cuda", rank), hidden, DTYPE, max_rows=max(NUM_ROWS)
        )
        if peers.memory is None:
            raise RuntimeError(f"no peer memory: {peers.obstacle}")
        for num_rows in NUM_ROWS:
            reduction = Reduction(peers.memory, num_rows, hidden)
            parts = [torch.empty_like(reduction.out) for _ in range(num_ranks)]
            dist.all_gather(parts, reduction.inputs[-1])
            us = {}
            for name, way in (reduction.ways() | peer_ways(reduction)).items():
                torch.cuda.synchronize()
                with torch.cuda.stream(stream):
                    for x in reduction.inputs:
                        way(x)
                torch.cuda.synchronize()
                if name in reduction.ways():
                    reduction.check(name, parts)
                graph = capture(way, reduction.inputs, stream)
                dist.barrier()
                us[name] = time_us([graph], [stream], NUM_CALLS)
            rows.append({"hidden": hidden, "num_rows": num_rows, "us": us})
    if rank == 0:
        Path(folder, "rows").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def measure_one_gpu(_: int, num_ranks: int, folder: str) -> None:
    """Measures with a stream for each rank, and writes the rows."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    streams = [torch.cuda.Stream() for _ in range(num_ranks)]
    # A rank's running kernel and its next one must leave room for the other ranks' kernels.
    num_programs = torch.cuda.get_device_properties(0).multi_processor_count // (2 * num_ranks)
    rows = []
    for hidden in HIDDEN:
        num_bytes = buffer_bytes(num_ranks, hidden, DTYPE, max(NUM_ROWS))
        buffers = [torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in streams]
        sizes = (buffers, hidden, DTYPE, max(NUM_ROWS), num_programs)
        memories = [peer_memory(rank, *sizes) for rank in range(num_ranks)]
        for num_rows in NUM_ROWS:
            reductions = [Reduction(memory, num_rows, hidden) for memory in memories]
            parts, us = [reduction.inputs[-1] for reduction in reductions], {}
            for name in reductions[0].ways():
                torch.cuda.synchronize()
                for reduction, stream in zip(reductions, streams, strict=True):
                    with torch.cuda.stream(stream):
                        for x in reduction.inputs:
                            reduction.ways()[name](x)
                torch.cuda.synchronize()
                for reduction in reductions:
                    reduction.check(name, parts)
                graphs = [
                    capture(reduction.ways()[name], reduction.inputs, stream)
                    for reduction, stream in zip(reductions, streams, strict=True)
                ]
                us[name] = time_us(graphs, streams, NUM_CALLS)
            rows.append({"hidden": hidden, "num_rows": num_rows, "us": us})
    Path(folder, "rows").write_text(json.dumps(rows))


def run(measure: Callable[[int, int, str], None], num_processes: int, num_ranks: int) -> list[Any]:
    """Runs the processes and returns the rows; one that fails or hangs ends all."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=measure, args=(rank, num_ranks, folder))
            for rank in range(num_processes)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end and not any(process.exitcode for process in processes):
            if all(process.exitcode == 0 for process in processes):
                break
            time.sleep(0.1)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        if codes != [0] * num_processes:
            raise RuntimeError(f"exit codes {codes}; None did not end")
        rows: list[Any] = json.loads(Path(folder, "rows").read_text())
        return rows


def main() -> None:
    """Measures, prints, and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--one-gpu", action="store_true", help="ranks are streams of one GPU")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--commit", default=commit(), help="what is measured")
    options = parser.parse_args()
    measure = measure_one_gpu if options.one_gpu else measure_rank
    rows = run(measure, 1 if options.one_gpu else options.ranks, options.ranks)
    result = {
        "command": "python -m benchmarks.all_reduce " + " ".join(sys.argv[1:]),
        "commit": options.commit,
        "gpu": torch.cuda.get_device_name(),
        "num_gpus": 1 if options.one_gpu else options.ranks,
        "num_ranks": options.ranks,
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        },
        "dtype": "bfloat16",
        "rows": rows,
    }
    for row in rows:
        timed = "  ".join(f"{name}={us}" for name, us in row["us"].items())
        print(f"hidden={row['hidden']}  rows={row['num_rows']}  us: {timed}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
