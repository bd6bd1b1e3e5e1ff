"""Two engines and a router on this machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from examples.demo.load import wait_for_engines
from examples.demo.model import Model
from examples.demo.services import Service, Services

NUM_ENGINES = 2
BLOCK_SIZE = 16
"""Tokens; small, so that the demo's prompts of some hundred tokens have full blocks to share."""
NUM_BLOCKS = 1024
"""Pool of an engine with a small model: 16,384 tokens, for the demo's model 112 MiB of float32."""
GPU_MEMORY_UTILIZATION = 0.8
"""Of one GPU, for all engines on it together."""
SMALL_MODEL_START_SECONDS = 120.0
REAL_MODEL_START_SECONDS = 3600.0
"""A checkpoint may have to be downloaded first."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Running services.

    Attributes:
        engines: All engines.
        router: The router before them.
    """

    engines: list[Service]
    router: Service


async def start_fleet(
    services: Services,
    model: Model,
    num_gpus: int,
    show: Callable[[Service, str], None] = lambda service, state: None,
    num_ranks: int = 1,
) -> Fleet:
    """Starts the engines and the router, and returns once the router sends to every engine.

    Args:
        services: Owns the processes.
        model: What to serve.
        num_gpus: GPUs of this machine, for the engines to share; 0 serves on the CPU.
        show: Told the latest of each service that starts.
        num_ranks: Ranks of each engine.

    Raises:
        ServiceFailedError: A service ended or did not become ready.
        DemoFailedError: The router does not see every engine.
    """
    engines = [
        services.start(
            f"engine-{index}",
            ["engine_service", *engine_arguments(model, index, num_gpus, num_ranks)],
        )
        for index in range(NUM_ENGINES)
    ]
    addresses = ",".join(engine.address for engine in engines)
    router = services.start("router", ["router", "--engines", addresses])
    timeout = SMALL_MODEL_START_SECONDS if model.is_small else REAL_MODEL_START_SECONDS
    await services.wait_ready([*engines, router], timeout, show)
    async with services.failures_first():
        await wait_for_engines(router.address, NUM_ENGINES)
    return Fleet(engines, router)


def engine_gpus(index: int, num_gpus: int, num_ranks: int) -> range:
    """Returns the GPUs of one of the engines, one a rank; none if there are fewer than ranks."""
    num_groups = num_gpus // num_ranks
    if not num_groups:
        return range(0)
    first = index % num_groups * num_ranks
    return range(first, first + num_ranks)


def engine_arguments(model: Model, index: int, num_gpus: int, num_ranks: int = 1) -> list[str]:
    """Returns the options of one of the engines."""
    gpus = engine_gpus(index, num_gpus, num_ranks)
    arguments = ["--model", model.path, "--block-size", str(BLOCK_SIZE)]
    arguments += ["--cpu-threads", str(_cpu_threads(model, gpus, num_ranks))]
    if num_ranks > 1:
        arguments += ["--tensor-parallel-size", str(num_ranks)]
    if model.is_small:
        arguments += ["--served-model-name", "pagestream-demo", "--num-blocks", str(NUM_BLOCKS)]
    if model.is_random:
        arguments += ["--load-format", "dummy"]
    if gpus:
        num_sharing = -(-NUM_ENGINES // (num_gpus // num_ranks))
        arguments += ["--device", f"cuda:{gpus.start}"]
        arguments += ["--gpu-memory-utilization", str(GPU_MEMORY_UTILIZATION / num_sharing)]
    elif num_gpus:
        arguments += ["--device", "cpu"]
    return arguments


def _cpu_threads(model: Model, gpus: range, num_ranks: int) -> int:
    """Returns the threads of one rank: they share the cores, and small work has no use for two.

    More threads than cores would only wait for each other.
    """
    if model.is_small or gpus:
        return 1
    return max(1, (os.cpu_count() or 1) // (NUM_ENGINES * num_ranks))
