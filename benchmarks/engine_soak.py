"""Mixed load on one GPU for minutes: `python -m benchmarks.engine_soak --minutes 8`.

Nothing else may run on that GPU. Requests of random lengths come in bursts, share prefixes, have
priorities, and are cancelled at random, on a pool that is too small for all that run, so that
sequences are preempted. Afterwards every request must have had exactly one end, with all its tokens
unless it was cancelled; no block may be in use, and memory may not have grown. Prints the longest
step, and the longest time that one kept the device waiting. The exit code is 1 if something was
wrong.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.engine import machine
from benchmarks.provenance import commit
from benchmarks.shapes import SHAPES
from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore, calm_garbage_collection
from engine_service.core.types import (
    FinishReason,
    Request,
    StepOutput,
    int32_array,
)
from engine_service.worker.executor import start_executor
from protos.wire.sampling_params import SamplingParams

_NUM_OPEN = 400
_NUM_BLOCKS = 2_400
_NUM_BASES = 8
_NOISE_TOKENS = 1_000_000
_MAX_PROMPT = 3_000
_MAX_OUTPUT = 4_000
_CANCELLED_SHARE = 0.15
_SAMPLE_SECONDS = 5.0
_END_SECONDS = 60.0
_MAX_GROWTH_BYTES = 64 << 20


@dataclass(slots=True, kw_only=True)
class Open:
    """A request under way."""

    num_wanted: int
    num_tokens: int = 0
    cancel_after: int | None = None
    """Tokens at which it is cancelled."""


@dataclass(slots=True, kw_only=True)
class Record:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    longest_step_seconds: float = 0.0
    longest_exposed_seconds: float = 0.0
    """The most that a step took beyond the time of its device."""
    samples: list[dict[str, int]] = field(default_factory=list)
    """Bytes by what they are of, every few seconds."""


class Load:
    """Keeps requests coming to a core and checks what comes back."""

    def __init__(self, core: EngineCore, record: Record, seed: int) -> None:
        self._core = core
        self._record = record
        self._rng = random.Random(seed)
        # Drawn beforehand, so that the steps wait for the engine and not for this.
        self._bases = [self._rng.choices(range(10_000), k=_MAX_PROMPT) for _ in range(_NUM_BASES)]
        self._noise = self._rng.choices(range(10_000), k=_NOISE_TOKENS)
        self._open: dict[int, Open] = {}
        self._cancelled: set[int] = set()
        self._next_id = 0

    @property
    def num_open(self) -> int:
        """Requests under way."""
        return len(self._open)

    def submit_burst(self) -> None:
        """Adds some requests if there is room."""
        if len(self._open) < _NUM_OPEN and self._rng.random() < 0.2:
            for _ in range(self._rng.choice((1, 4, 64))):
                self._submit()

    def cancel_all(self) -> None:
        """Cancels whatever is open."""
        for request_id in list(self._open):
            self._cancel(request_id)

    def take(self, output: StepOutput) -> None:
        """Checks the outcome of a step."""
        record = self._record
        begin = 0
        for request_id, count in zip(output.request_ids, output.token_counts, strict=True):
            token_ids = output.token_ids[begin : begin + count]
            begin += count
            if request_id in self._cancelled:
                record.faults["tokens after a cancellation"] += 1
                continue
            request = self._open.get(request_id)
            if request is None:
                record.faults["tokens after the end"] += 1
                continue
            if any(not 0 <= token_id < 151_936 for token_id in token_ids):
                record.faults["token outside the vocabulary"] += 1
            request.num_tokens += count
            record.counts["tokens"] += count
            if request.cancel_after is not None and request.num_tokens >= request.cancel_after:
                self._cancel(request_id)
        for finish in output.finishes:
            request = self._open.pop(finish.request_id, None)
            if request is None:
                record.faults["a second end"] += 1
                continue
            record.counts["finished"] += 1
            if finish.reason is not FinishReason.LENGTH or request.num_tokens != request.num_wanted:
                record.faults["a wrong end"] += 1
        record.counts["preemptions"] += output.stats.num_preemptions
        record.counts["prefix hit tokens"] += output.stats.num_prefix_hit_tokens

    def _submit(self) -> None:
        rng = self._rng
        prompt_len = rng.choice((1, 30, 300, 1_000, _MAX_PROMPT))
        prompt_len = rng.randint(1, prompt_len)
        num_shared = rng.choice((0, prompt_len // 2, prompt_len))
        prompt = rng.choice(self._bases)[:num_shared]
        begin = rng.randrange(_NOISE_TOKENS - _MAX_PROMPT)
        prompt += self._noise[begin : begin + prompt_len - num_shared]
        num_wanted = rng.randint(1, rng.choice((1, 30, 300, _MAX_OUTPUT)))
        cancel_after = None
        if rng.random() < _CANCELLED_SHARE:
            cancel_after = rng.randint(1, num_wanted)
            cancel_after = cancel_after if cancel_after < num_wanted else None
        self._open[self._next_id] = Open(num_wanted=num_wanted, cancel_after=cancel_after)
        self._core.add(
            Request(
                request_id=self._next_id,
                prompt_token_ids=int32_array(prompt),
                sampling_params=SamplingParams(
                    temperature=rng.choice((0.0, 0.6, 1.0)), max_tokens=num_wanted, ignore_eos=True
                ),
                priority=rng.choice((0, 0, 0, 1)),
            )
        )
        self._next_id += 1
        self._record.counts["submitted"] += 1

    def _cancel(self, request_id: int) -> None:
        self._core.cancel(request_id)
        del self._open[request_id]
        self._cancelled.add(request_id)
        self._record.counts["cancelled"] += 1


def _sample() -> dict[str, int]:
    """Returns bytes: taken of the device by all, in tensors on it, and of this process."""
    with Path("/proc/self/statm").open() as file:
        num_pages = int(file.read().split()[1])
    free, total = torch.cuda.mem_get_info()
    return {
        "device": total - free,
        "tensors": torch.cuda.memory_allocated(),
        "process": num_pages * resource.getpagesize(),
    }


def soak(minutes: float, seed: int) -> Record:
    """Runs the load; returns what happened."""
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES["qwen3-0.6b"]))
        scheduler = SchedulerOptions()
        executor, info = start_executor(
            ModelOptions(model=folder, load_format="dummy"),
            CacheOptions(num_blocks=_NUM_BLOCKS),
            scheduler,
        )
    core = EngineCore(info, scheduler, executor)
    with calm_garbage_collection():
        _run(core, Load(core, record, seed), record, 60 * minutes)
    _check_end(core, record)
    core.close()
    return record


def _run(core: EngineCore, load: Load, record: Record, seconds: float) -> None:
    """Loads the core for so long, then lets it end."""
    end = time.monotonic() + seconds
    next_sample = time.monotonic() + _SAMPLE_SECONDS
    while time.monotonic() < end:
        load.submit_burst()
        output = core.step()
        load.take(output)
        stats = output.stats
        record.longest_step_seconds = max(record.longest_step_seconds, stats.step_seconds)
        exposed = stats.step_seconds - stats.device_seconds
        record.longest_exposed_seconds = max(record.longest_exposed_seconds, exposed)
        record.counts["steps"] += bool(stats.num_scheduled_seqs)
        if time.monotonic() > next_sample:
            record.samples.append(_sample())
            next_sample += _SAMPLE_SECONDS
    # One half ends by itself, unless something is wrong.
    end = time.monotonic() + _END_SECONDS
    while load.num_open > _NUM_OPEN // 2 and time.monotonic() < end:
        load.take(core.step())
    if load.num_open > _NUM_OPEN // 2:
        record.faults["requests that did not end in time"] += load.num_open
    load.cancel_all()
    while core.has_work and time.monotonic() < end + _END_SECONDS:
        load.take(core.step())
    if core.has_work:
        record.faults["work left after all was cancelled"] += 1


def _check_end(core: EngineCore, record: Record) -> None:
    blocks = core.scheduler.pool.statistics()
    if blocks.num_used_blocks:
        record.faults["blocks left in use"] += blocks.num_used_blocks
    if blocks.num_empty_blocks + blocks.num_cached_blocks != _NUM_BLOCKS:
        record.faults["blocks lost"] += 1
    counts = record.counts
    if counts["submitted"] != counts["finished"] + counts["cancelled"]:
        record.faults["requests without an end"] += 1
    if not counts["preemptions"] or not counts["prefix hit tokens"]:
        record.faults["nothing was preempted or shared"] += 1
    fifth = max(1, len(record.samples) // 5)
    early, late = record.samples[fifth : 2 * fifth], record.samples[-fifth:]
    for name in record.samples[0] if record.samples else ():
        growth = _mean(late, name) - _mean(early, name)
        record.counts[f"growth of the memory of the {name}, bytes"] = round(growth)
        if growth > _MAX_GROWTH_BYTES:
            record.faults[f"memory of the {name} grew"] += 1


def _mean(samples: list[dict[str, int]], name: str) -> float:
    return sum(sample[name] for sample in samples) / max(1, len(samples))


def main() -> int:
    """Soaks as the arguments say; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    record = soak(options.minutes, options.seed)
    report = {
        "command": f"python -m benchmarks.engine_soak --minutes {options.minutes:g}",
        "commit": options.commit,
        "machine": machine(),
        "counts": dict(record.counts),
        "longest_step_ms": round(1e3 * record.longest_step_seconds, 2),
        "longest_exposed_ms": round(1e3 * record.longest_exposed_seconds, 2),
        "faults": dict(record.faults),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 1 if record.faults else 0


if __name__ == "__main__":
    sys.exit(main())
