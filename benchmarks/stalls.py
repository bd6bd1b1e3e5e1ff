"""What delays the core's steps: `python -m benchmarks.stalls`, on a GPU.

One process is the core, in which 128 sequences decode. Another submits and cancels bursts of 256
requests through the server's own channel; the core also collects garbage. For each of these, prints
the longest time that a step took beyond its time on the device: the delay for the other requests.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.engine import machine
from benchmarks.provenance import commit
from benchmarks.shapes import SHAPES
from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore, serve
from engine_service.core.types import (
    Request,
    StepOutput,
    int32_array,
)
from engine_service.server.core_channel import CoreChannel
from engine_service.worker.executor import start_executor
from protos.wire.sampling_params import SamplingParams

_NUM_DECODES = 128
_BURST = 256
_PAUSE = 1.5
_SETTLING = -1
_COLLECT_GARBAGE = "collect garbage"
_PHASES = ("quiet", "256 submits", "256 cancels", "submits and cancels", _COLLECT_GARBAGE)


class RecordingCore(EngineCore):
    """Keeps the time of each step, and collects garbage when the burst of that name is on."""

    def __init__(self, *arguments: object, phase: object) -> None:
        super().__init__(*arguments)
        self._phase = phase
        self._last_phase = _SETTLING
        self.exposed: dict[int, list[float]] = {}

    def step(self) -> StepOutput:
        """Does a step."""
        phase = self._phase.value
        if phase != self._last_phase and _PHASES[phase] == _COLLECT_GARBAGE:
            gc.collect()
        self._last_phase = phase
        output = super().step()
        if phase != _SETTLING and output.stats.num_scheduled_seqs >= _NUM_DECODES:
            seconds = output.stats.step_seconds - output.stats.device_seconds
            self.exposed.setdefault(phase, []).append(seconds)
        return output


def _request(request_id: int, prompt_len: int, max_tokens: int) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=int32_array([(request_id * 31 + i) % 9_973 for i in range(prompt_len)]),
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        arrival_time=time.monotonic(),
    )


async def _disturb(pipe: Connection, phase: object) -> None:
    channel = CoreChannel(pipe, lambda message: None, lambda: None)
    channel.start()
    for number in range(_NUM_DECODES):
        channel.submit(_request(number, 100, 20_000))
    await asyncio.sleep(2 * _PAUSE)
    phase.value = 0
    await asyncio.sleep(_PAUSE)
    waiting = range(1_000, 1_000 + _BURST)
    phase.value = 1
    for number in waiting:
        channel.submit(_request(number, 1_000, 1_000))
    await asyncio.sleep(_PAUSE)
    phase.value = 2
    for number in waiting:
        channel.cancel(number)
    await asyncio.sleep(_PAUSE)
    phase.value = 3
    for number in range(2_000, 2_000 + _BURST):
        channel.submit(_request(number, 1_000, 1_000))
        await asyncio.sleep(0.0005)
        channel.cancel(number)
    await asyncio.sleep(_PAUSE)
    phase.value = 4
    await asyncio.sleep(_PAUSE)
    channel.close()
    channel.join(5.0)


def _run_server(pipe: Connection, phase: object) -> None:
    asyncio.run(_disturb(pipe, phase))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=__doc__)
    parser.add_argument("--commit", default=commit(), help="commit to record in the results")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    phase = context.Value("i", _SETTLING)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES["qwen3-0.6b"]))
        scheduler = SchedulerOptions()
        executor, info = start_executor(
            ModelOptions(model=folder, load_format="dummy"), CacheOptions(), scheduler
        )
    core = RecordingCore(info, scheduler, executor, phase=phase)
    ours, theirs = context.Pipe()
    server = context.Process(target=_run_server, args=(ours, phase))
    server.start()
    ours.close()
    serve(core, theirs)
    server.join()
    core.close()
    report = {
        "command": "python -m benchmarks.stalls",
        "commit": options.commit,
        "machine": machine(),
        "milliseconds": {
            _PHASES[number]: {
                "steps": len(seconds),
                "median": round(1e3 * sorted(seconds)[len(seconds) // 2], 3),
                "longest": round(1e3 * max(seconds), 3),
            }
            for number, seconds in sorted(core.exposed.items())
        },
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
