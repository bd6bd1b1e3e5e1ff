"""What the sampling parameters cost a decode step on a GPU: `python -m benchmarks.sampling`.

A model of random weights, so with flat distributions, decodes a batch in which every row asks for
the same. The variants take turns, and each is compared with the plain one of its turn.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import SHAPES, Engine
from benchmarks.provenance import commit
from benchmarks.workloads import TEMPERATURE, uniform
from protos.wire.sampling_params import LogitBias, SamplingParams

PLAIN = "plain"
VARIANTS: Mapping[str, SamplingParams] = {
    PLAIN: SamplingParams(temperature=TEMPERATURE),
    "top_k 50, top_p 0.9": SamplingParams(temperature=TEMPERATURE, top_k=50, top_p=0.9),
    "top_p 0.9": SamplingParams(temperature=TEMPERATURE, top_p=0.9),
    "penalties": SamplingParams(
        temperature=TEMPERATURE,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.5,
    ),
    "penalties, top_k 50, top_p 0.9": SamplingParams(
        temperature=TEMPERATURE,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        top_k=50,
        top_p=0.9,
    ),
    "300 biases": SamplingParams(
        temperature=TEMPERATURE, logit_bias=tuple(LogitBias(7 * i, 1.0) for i in range(300))
    ),
    "logprobs 5": SamplingParams(temperature=TEMPERATURE, logprobs=5),
    "logprobs 20": SamplingParams(temperature=TEMPERATURE, logprobs=20),
}


def measure(engine: Engine, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures all variants at one batch size."""
    workload = uniform(batch, options.prompt_len, options.output_len)
    step_ms: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for params in VARIANTS.values():
        # Captures the graphs.
        engine.run(uniform(batch, 16, 4), params)
    for _ in range(options.repeats):
        for name, params in VARIANTS.items():
            step_ms[name].append(engine.run(workload, params).decode_phases()["step"])
    results = {}
    for name, times in step_ms.items():
        changes = [
            100 * (mine / plain - 1) for mine, plain in zip(times, step_ms[PLAIN], strict=True)
        ]
        results[name] = {
            "decode_step_ms": round(statistics.median(times), 4),
            "tokens_per_second": round(1e3 * batch / statistics.median(times)),
            "slower_percent": round(statistics.median(changes), 2),
        }
        print(f"batch {batch}, {name}: {results[name]}", flush=True)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.enforce_eager, options.tensor_parallel_size = False, 1
    options.max_steps_in_flight = None
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(options.model, Path(folder), options)
        report = {
            "command": "python -m benchmarks.sampling " + " ".join(arguments or sys.argv[1:]),
            "commit": options.commit or commit(),
            "machine": f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
            "model": options.model,
            "seconds_to_ready": round(engine.seconds_to_ready, 2),
            "batches": {batch: measure(engine, batch, options) for batch in options.batches},
        }
        engine.core.close()
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
