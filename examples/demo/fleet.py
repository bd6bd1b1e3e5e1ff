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
) -> Fleet:
    """Starts the engines and the router, and returns once the router sends to every engine.

    Args:
        services: Owns the processes.
        model: What to serve.
        num_gpus: GPUs of this machine, for the engines to share; 0 serves on the CPU.
        show: Told the latest of each service that starts.

    Raises:
        ServiceFailedError: A service ended or did not become ready.
        DemoFailedError: The router does not see every engine.
    """
    engines = [
        services.start(
            f"engine-{index}", ["engine_service", *engine_arguments(model, index, num_gpus)]
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


def engine_arguments(model: Model, index: int, num_gpus: int) -> list[str]:
    """Returns the options of one of the engines."""
    arguments = ["--model", model.path, "--block-size", str(BLOCK_SIZE)]
    arguments += ["--cpu-threads", str(_cpu_threads(model, num_gpus))]
    if model.is_small:
        arguments += ["--served-model-name", "pagestream-demo", "--num-blocks", str(NUM_BLOCKS)]
    if model.is_random:
        arguments += ["--load-format", "dummy"]
    if num_gpus:
        num_sharing = -(-NUM_ENGINES // num_gpus)
        arguments += ["--device", f"cuda:{index % num_gpus}"]
        arguments += ["--gpu-memory-utilization", str(GPU_MEMORY_UTILIZATION / num_sharing)]
    return arguments


def _cpu_threads(model: Model, num_gpus: int) -> int:
    """Returns the threads of one engine: they share the cores, and small work has no use for two.

    More threads than cores would only wait for each other.
    """
    if model.is_small or num_gpus:
        return 1
    return max(1, (os.cpu_count() or 1) // NUM_ENGINES)
