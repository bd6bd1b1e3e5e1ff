"""How far the logits are from transformers', on the device at hand: `python -m benchmarks.parity`.

Prints the largest difference in float32 of each way a token can be computed, and on a CUDA GPU the
error of 16-bit types against float32 beside that of transformers. The tests hold bounds of these.
"""

import random
import tempfile
from pathlib import Path

import torch

from tests.engine_service.tiny_models import (
    CUDA_SHAPES,
    OTHER_SHAPES,
    SHAPES,
    make_model,
    random_tokens,
)
from tests.engine_service.worker import test_model_runner as runner_tests

NUM_SEEDS = 5


def float32_differences(folder: Path, device: str) -> None:
    """Prints a row for each shape."""
    largest = 0.0

    def note(logits: torch.Tensor, expected: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, (logits - expected).abs().max().item())

    runner_tests.check = note
    for index, shape in enumerate(CUDA_SHAPES if device == "cuda" else SHAPES + OTHER_SHAPES):
        model = make_model(folder / f"float32-{index}", shape)
        prompt = random_tokens(random.Random(1), 37, model.vocab_size)
        cells = []
        for check in runner_tests.CHECKS:
            largest = 0.0
            check(model, runner_tests.Steps(model.folder, device), prompt)
            cells.append(f"{check.__name__.removeprefix('check_')} {largest:.1e}")
        print(f"float32 {shape}:", ", ".join(cells))


def half_errors(folder: Path) -> None:
    """Prints a row for each seed of Qwen3 in bfloat16, and for other architectures and types."""
    qwen3 = [(seed, torch.bfloat16, {"family": "Qwen3"}) for seed in range(NUM_SEEDS)]
    others = [
        (1, dtype, changes)
        for changes in runner_tests.OTHER_FAMILIES
        for dtype in (torch.bfloat16, torch.float16)
    ]
    for index, (seed, dtype, changes) in enumerate(qwen3 + others):
        ours, theirs = runner_tests.half_errors(folder / f"half-{index}", seed, dtype, **changes)
        print(
            f"{changes['family']} {dtype} seed {seed}: {ours:.4f}, "
            f"transformers {theirs:.4f}, {ours / theirs:.2f}"
        )


def main() -> None:
    """Measures and prints."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("device:", torch.cuda.get_device_name() if device == "cuda" else device)
    with tempfile.TemporaryDirectory() as folder:
        float32_differences(Path(folder), device)
        if device == "cuda":
            half_errors(Path(folder))


if __name__ == "__main__":
    main()
