"""Runs the offline workloads in-process, on one GPU or several: `python -m benchmarks.engine`.

Weights are random, of the shapes of Qwen3 models. Each workload runs several times after
a warm-up, each time with a cache salt of its own, so that no run finds another's prefixes. Prints
tokens per second with the share of the limit and the ratio to each peer, and where the time of its
steps went; with --profile also the kernels of a decode step.
"""

import argparse
import itertools
import json
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers import TOKENS_PER_SECOND, TOKENS_PER_SECOND_OF_TWO
from benchmarks.provenance import commit, cpus
from benchmarks.shapes import SHAPES
from benchmarks.workloads import QUICK_WORKLOADS, TEMPERATURE, WORKLOADS, Workload, uniform
from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.types import (
    RankStats,
    Request,
    StepOutput,
    StepStats,
    int32_array,
)
from engine_service.worker.executor import start_executor
from engine_service.worker.rank_meter import REPORT_SECONDS
from protos.wire.sampling_params import SamplingParams

PHASES = ("schedule", "prepare", "launch", "wait", "update", "device", "step")
PROFILED_BATCHES = (1, 8, 16, 64, 256)
_PROFILED_STEPS = 20


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of a workload."""

    seconds: float = 0.0
    first_token_seconds: float = 0.0
    """Until the first request had a token."""
    steps: list[StepStats] = field(default_factory=list)

    def phases(self) -> dict[str, float]:
        """Returns the milliseconds that a step spent in each phase, on average."""
        return _mean_phases(self.steps)

    def decode_phases(self) -> dict[str, float]:
        """Returns the same of steps that decoded and did nothing else."""
        return _mean_phases([step for step in self.steps if not step.num_prefill_tokens])


def _means_of_rank(before: RankStats, after: RankStats) -> dict[str, float]:
    num_steps = max(after.num_steps - before.num_steps, 1)
    means = {
        "mean_lag_us": 1e6 * (after.lag_seconds - before.lag_seconds) / num_steps,
        "memory_bytes": after.memory_bytes,
    }
    if before.collective_seconds is not None and after.collective_seconds is not None:
        seconds = after.collective_seconds - before.collective_seconds
        means["mean_collective_us"] = 1e6 * seconds / num_steps
    return {name: round(mean, 1) for name, mean in means.items()}


def _mean_phases(steps: list[StepStats]) -> dict[str, float]:
    if not steps:
        return {}
    means = {
        phase: 1e3 * statistics.fmean(getattr(step, f"{phase}_seconds") for step in steps)
        for phase in PHASES
    }
    # What a step takes beyond the device's time: the host, as far as it is not hidden.
    means["exposed"] = means["step"] - means["device"]
    return {"steps": len(steps)} | {phase: round(mean, 4) for phase, mean in means.items()}


class Engine:
    """One model, and the runs on it."""

    def __init__(self, shape: str, folder: Path, options: argparse.Namespace) -> None:
        (folder / "config.json").write_text(json.dumps(SHAPES[shape]))
        started_at = time.perf_counter()
        model = ModelOptions(
            model=str(folder),
            load_format="dummy",
            enforce_eager=options.enforce_eager,
            tensor_parallel_size=options.tensor_parallel_size,
        )
        scheduler = SchedulerOptions(max_steps_in_flight=options.max_steps_in_flight)
        executor, self.info = start_executor(model, CacheOptions(), scheduler)
        self.core = EngineCore(self.info, scheduler, executor)
        self.seconds_to_ready = time.perf_counter() - started_at
        self._ids = itertools.count()
        self._num_runs = 0
        self._ranks: dict[int, RankStats] = {}
        self._ranks_before: dict[int, RankStats] = {}

    def submit(self, workload: Workload, params: SamplingParams | None = None) -> None:
        """Adds all requests of a workload, none of which finds a prefix of an earlier one."""
        params = params or SamplingParams(temperature=TEMPERATURE)
        self._num_runs += 1
        for prompt, output_len in zip(*workload, strict=True):
            self.core.add(
                Request(
                    request_id=next(self._ids),
                    prompt_token_ids=int32_array(prompt),
                    sampling_params=replace(params, max_tokens=output_len, ignore_eos=True),
                    cache_salt=f"run {self._num_runs}",
                )
            )

    def run(self, workload: Workload, params: SamplingParams | None = None) -> Run:
        """Runs a workload to its end; without parameters, with a temperature alone."""
        run = Run()
        num_tokens = 0
        started_at = time.perf_counter()
        self.submit(workload, params)
        while self.core.has_work:
            output = self.core.step()
            if output.token_ids and not num_tokens:
                run.first_token_seconds = time.perf_counter() - started_at
            num_tokens += len(output.token_ids)
            self._hear_ranks(output)
            if output.stats.num_scheduled_seqs:
                run.steps.append(output.stats)
        run.seconds = time.perf_counter() - started_at
        assert num_tokens == sum(workload[1]), "every request gets all its tokens"
        return run

    def ranks(self) -> dict[int, dict[str, float]]:
        """Returns each of several ranks' memory, and its means since the last call.

        They are how late a rank began a step after the first one was about to send its plan, and
        how long its collectives took in a step.
        """
        if self.info.tensor_parallel_size == 1:
            return {}
        time.sleep(2 * REPORT_SECONDS)
        self._hear_ranks(self.core.step())
        before, self._ranks_before = self._ranks_before, dict(self._ranks)
        return {
            rank: _means_of_rank(before[rank], stats)
            for rank, stats in sorted(self._ranks.items())
            if rank in before
        }

    def _hear_ranks(self, output: StepOutput) -> None:
        self._ranks |= {stats.rank: stats for stats in output.rank_stats}

    def profile_decode(self, batch: int) -> dict[str, Any]:
        """Returns where the GPU's time of a decode step of so many rows of 1,024 tokens goes."""
        self.submit(uniform(batch, 1024, 100))
        while (output := self.core.step()).stats.num_prefill_tokens or (
            output.stats.num_decode_tokens < batch
        ):
            pass
        for _ in range(5):
            self.core.step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            steps = [self.core.step().stats for _ in range(_PROFILED_STEPS)]
            torch.cuda.synchronize()
        while self.core.has_work:
            self.core.step()
        # The first one's time is that of the profiler's own start.
        return _summarize(profiler, _PROFILED_STEPS, steps[1:])

    def profile_prefill(self) -> dict[str, Any]:
        """Returns the same of a step full of two prompts."""
        num_steps = 4
        self.submit(uniform(2 * num_steps, self.info.max_num_batched_tokens // 2 - 8, 1))
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            steps = [self.core.step().stats for _ in range(num_steps)]
            torch.cuda.synchronize()
        while self.core.has_work:
            self.core.step()
        return _summarize(profiler, num_steps, steps[1:])


def _summarize(profiler: profile, num_steps: int, steps: list[StepStats]) -> dict[str, Any]:
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    for event in events:
        totals[event.name][0] += 1
        totals[event.name][1] += event.time_range.elapsed_us()
    ranges = [(event.time_range.start, event.time_range.end) for event in events]
    span = max(end for _, end in ranges) - min(start for start, _ in ranges)
    busy = _union(ranges)
    kernels = [
        {
            "name": name,
            "calls": round(calls / num_steps, 2),
            "us": round(time / num_steps, 2),
        }
        for name, (calls, time) in sorted(totals.items(), key=lambda item: -item[1][1])
    ]
    return {
        "span_us": round(span / num_steps, 1),
        "busy_us": round(busy / num_steps, 1),
        "gaps_us": round((span - busy) / num_steps, 1),
        "host": _mean_phases(steps),
        "kernels": kernels,
    }


def _union(ranges: list[tuple[float, float]]) -> float:
    """Returns how long at least one of them lasts: a kernel may start while another runs."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _rate(name: str, workload: Workload, run: Run) -> float:
    prompts, output_lens = workload
    num_tokens = sum(map(len, prompts)) if name == "prefill" else sum(output_lens)
    return num_tokens / run.seconds


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one model."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(shape, Path(folder), options)
        engine.run(QUICK_WORKLOADS["decode_b64"]() if options.quick else uniform(8, 300, 20))
        results: dict[str, Any] = {"seconds_to_ready": round(engine.seconds_to_ready, 2)}
        workloads = QUICK_WORKLOADS if options.quick else WORKLOADS
        for name in options.workloads:
            workload = workloads[name]()
            engine.ranks()
            runs = [engine.run(workload) for _ in range(options.repeats)]
            rates = sorted(_rate(name, workload, run) for run in runs)
            best = min(runs, key=lambda run: run.seconds)
            results[name] = {
                "best": round(rates[-1]),
                "median": round(statistics.median(rates)),
                "first_token_ms": round(1e3 * best.first_token_seconds, 2),
                "ratios": {
                    peer: round(rates[-1] / known[name], 3)
                    for peer, known in _peers(shape, options.tensor_parallel_size).items()
                    if name in known
                },
                "step_ms": best.phases(),
                "decode_step_ms": best.decode_phases(),
            }
            if ranks := engine.ranks():
                results[name]["ranks"] = ranks
            _print_workload(shape, name, results[name])
        if options.profile:
            results["decode_profile"] = {
                batch: engine.profile_decode(batch) for batch in PROFILED_BATCHES
            }
            results["prefill_profile"] = engine.profile_prefill()
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            results["gpu_memory_bytes"] = total - free
        engine.core.close()
    return results


def _peers(shape: str, num_ranks: int) -> Mapping[str, Mapping[str, int]]:
    """Returns the peers' figures, which are of one GPU or two."""
    known = {1: TOKENS_PER_SECOND, 2: TOKENS_PER_SECOND_OF_TWO}
    return known.get(num_ranks, {}).get(shape, {})


def _print_workload(shape: str, name: str, result: dict[str, Any]) -> None:
    kind = "input" if name == "prefill" else "output"
    print(
        f"{shape} {name}: {result['best']:,} {kind} tokens/s (median {result['median']:,}), "
        f"first token {result['first_token_ms']} ms"
    )
    if ratios := result["ratios"]:
        print("  of " + ", of ".join(f"{peer} {ratio}" for peer, ratio in ratios.items()))
    for title, phases in (("step", result["step_ms"]), ("decode step", result["decode_step_ms"])):
        if phases:
            times = (f"{phase} {value}" for phase, value in phases.items() if phase != "steps")
            print(f"  {title}, mean of {phases['steps']}, ms: {', '.join(times)}", flush=True)


def make_report(
    results: dict[str, dict[str, Any]], *, command: str, commit: str, machine: str
) -> dict[str, Any]:
    """Returns the results by model in the shape that the peers' are kept in, and all details."""

    def row(model: dict[str, Any], names: list[str]) -> dict[str, int]:
        return {name: model[name]["best"] for name in names if name in model}

    decoding = [name for name in WORKLOADS if name != "prefill"]
    return {
        "command": command,
        "commit": commit,
        "machine": machine,
        "how": "best of the runs of each workload, a cache salt for each; random weights; bfloat16 "
        "weights and KV cache; end of sequence ignored; temperature 0.6; in-process, no server",
        "out_tok_s": {
            shape: {"pagestream": row(model, decoding)} for shape, model in results.items()
        },
        "prefill_in_tok_s": {
            shape: {"pagestream": model["prefill"]["best"]}
            for shape, model in results.items()
            if "prefill" in model
        },
        "seconds_to_ready": {
            shape: {"pagestream": model["seconds_to_ready"]} for shape, model in results.items()
        },
        "details": results,
    }


def machine(num_gpus: int = 1) -> str:
    """Describes the GPUs, or the CPU where there are none, and the versions that matter."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(num_gpus)]
        devices = " and ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        devices = devices if num_gpus > 1 else names[0]
    else:
        devices = str(cpus()["cpu"])
    return f"{devices}, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Measures as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(TOKENS_PER_SECOND))
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3, help="runs per workload (default: 3)")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="GPUs (default: 1)")
    parser.add_argument("--max-steps-in-flight", type=int)
    parser.add_argument("--quick", action="store_true", help="small workloads, to try it")
    parser.add_argument(
        "--profile", action="store_true", help="also print the kernels of a decode step"
    )
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for shape in options.models:
        results[shape] = measure(shape, options)
        print(f"{shape}: ready after {results[shape]['seconds_to_ready']} s", flush=True)
        if options.output:
            report = make_report(
                results,
                command=shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]]),
                commit=options.commit,
                machine=machine(options.tensor_parallel_size),
            )
            options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
