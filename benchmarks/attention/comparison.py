"""Ways to compute one thing: each is checked, then timed, and what memory it takes is noted."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.provenance import commit, cpus

Way = Callable[[], torch.Tensor]
Row = dict[str, Any]

_TOLERANCES = {torch.bfloat16: 0.01, torch.float32: 1e-4}
_CPU_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the ways run, and what the hardware reaches there, as measured.

    Attributes:
        device: "cuda" or "cpu".
        dtype: Of queries, keys and values.
        tflop_s: Of a product of large matrices of that dtype, in 10^12 operations/s.
        tb_s: Of a copy in memory, bytes read and written, in 10^12 bytes/s.
    """

    device: str
    dtype: torch.dtype
    tflop_s: float
    tb_s: float

    @property
    def is_gpu(self) -> bool:
        """Whether Triton's kernels run and memory can be measured."""
        return self.device == "cuda"


def find_target() -> Target:
    """Takes the GPU, in bfloat16, or else the CPU, in float32, and measures its limits."""
    is_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if is_gpu else ("cpu", torch.float32)
    size = 8192 if is_gpu else 512
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.empty((4 << 30) if is_gpu else (64 << 20), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return Target(
        device=device,
        dtype=dtype,
        tflop_s=2 * size**3 / time_ms(lambda: matrix @ matrix, device) / 1e9,
        tb_s=2 * source.numel() / time_ms(lambda: copy.copy_(source), device) / 1e9,
    )


def time_ms(way: Way, device: str) -> float:
    """Returns the median milliseconds of a call, its work on the host included."""
    if device == "cuda":
        return float(triton.testing.do_bench(way, return_mode="median"))
    way()
    times = []
    for _ in range(_CPU_REPEATS):
        start = time.perf_counter()
        way()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def compare(ways: Mapping[str, Way | None], expected: torch.Tensor, target: Target) -> list[Row]:
    """Returns name, milliseconds and peak memory of each way.

    A way that cannot run here has the reason instead: None needs a GPU.

    Raises:
        RuntimeError: A way gives another result.
    """
    return [{"way": name, **_measure(name, way, expected, target)} for name, way in ways.items()]


def _measure(name: str, way: Way | None, expected: torch.Tensor, target: Target) -> Row:
    if way is None:
        return {"left_out": "needs a GPU"}
    try:
        check(way(), expected, name)
        peak = _peak_mib(way) if target.is_gpu else None
        return {"ms": round(time_ms(way, target.device), 4), "peak_mib": peak}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"left_out": "out of memory"}


def _peak_mib(way: Way) -> float:
    """Returns the most memory that a call takes beside its inputs; its result counts."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def check(out: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Refuses a result that differs by more than rounding.

    Raises:
        RuntimeError: Names what is wrong, and by how much.
    """
    tolerance = _TOLERANCES[out.dtype]
    error = float((out.float() - expected.float()).norm() / expected.float().norm())
    if not error < tolerance:
        raise RuntimeError(
            f"{what} is wrong: relative error {error:.3g}, must be below {tolerance}"
        )


def print_rows(rows: list[Row]) -> None:
    """Prints a line for each row, a table with the columns of the first complete one."""
    columns = list(next(row for row in rows if "left_out" not in row))
    print("  ".join(f"{name:>14}" for name in columns))
    for row in rows:
        cells = [row.get(name) for name in columns]
        line = "  ".join(f"{'' if cell is None else cell!s:>14}" for cell in cells)
        print(f"{line}  {row.get('left_out', '')}".rstrip())


def run_command(
    command: str, description: str, measure: Callable[[Target], list[Row]], arguments: list[str]
) -> None:
    """Measures, prints a table, and writes a JSON file if one is named."""
    parser = argparse.ArgumentParser(prog=f"python -m {command}", description=description)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    target = find_target()
    place = torch.cuda.get_device_name() if target.is_gpu else cpus()["cpu"]
    name = str(target.dtype).removeprefix("torch.")
    print(f"{place}, {name}: {target.tflop_s:.3g} TFLOP/s, {target.tb_s:.3g} TB/s")
    if not target.is_gpu:
        print("without a GPU: small sizes, no memory figures, and ours is the kernels' torch twin")
    rows = measure(target)
    print_rows(rows)
    if options.output is None:
        return
    result = {
        "command": f"python -m {command}",
        "commit": options.commit,
        "device": place,
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "dtype": name,
        "limits": {"tflop_s": round(target.tflop_s, 2), "tb_s": round(target.tb_s, 3)},
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
