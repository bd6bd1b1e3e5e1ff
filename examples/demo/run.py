"""The demo from the first process to the table."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console

from examples.demo.errors import DemoFailedError
from examples.demo.figures import EngineFigures, gpu_count, watch
from examples.demo.load import Answer, describe, prompts, send_all, wait_for_engines
from examples.demo.model import ensure_model
from examples.demo.report import print_report
from examples.demo.screen import Screen, answer_panel
from examples.demo.services import Service, Services

NUM_ENGINES = 2
BLOCK_SIZE = 16
"""Tokens; small, so that the demo's prompts of some hundred tokens have full blocks to share."""
NUM_BLOCKS = 1024
"""Pool of an engine with the small model: 16,384 tokens in 64 MiB of float32."""
GPU_MEMORY_UTILIZATION = 0.8
"""Of one GPU, for all engines on it together."""
SMALL_MODEL_START_SECONDS = 120.0
REAL_MODEL_START_SECONDS = 3600.0
"""A checkpoint may have to be downloaded first."""

_EXIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run."""

    model: str
    """Folder or hub ID."""
    is_small_model: bool
    num_requests: int
    max_tokens: int
    log_folder: Path
    keep_serving: bool


async def run(options: Options, console: Console) -> None:
    """Starts the services, sends the chats, prints the table, stops the services.

    Raises:
        ServiceFailedError: A service ended or did not become ready.
        DemoFailedError: Something else failed though the services run.
    """
    answer_title = "one answer"
    if options.is_small_model:
        await _create_small_model(Path(options.model), console)
        answer_title += ": noise, for the weights are random"
    num_gpus = await asyncio.to_thread(gpu_count)
    async with Services(options.log_folder) as services:
        with Screen(console, answer_title) as screen:
            engines, router = await _start(services, options, num_gpus, screen)
            screen.say(f"sending {options.num_requests} chats at once")
            figures = [
                EngineFigures(service=engine, gpu=index % num_gpus if num_gpus else None)
                for index, engine in enumerate(engines)
            ]
            started = time.perf_counter()
            answers = await _send(services, router, options, figures, screen)
            seconds = time.perf_counter() - started
        console.print(answer_panel(answers[0], answer_title))
        print_report(console, answers, figures, seconds)
        for service in (router, *engines):
            # Not in a table, whose columns would break it.
            console.print(f"metrics of {service.name}: {service.metrics_url}")
        if options.keep_serving:
            console.print(f"the router serves on {router.address} until Ctrl-C")
            while True:
                services.check()
                await asyncio.sleep(1.0)


def engine_arguments(options: Options, index: int, num_gpus: int) -> list[str]:
    """Returns what follows `python -m` for one of the engines."""
    arguments = ["engine_service", "--model", options.model, "--block-size", str(BLOCK_SIZE)]
    arguments += ["--cpu-threads", str(_cpu_threads(options, num_gpus))]
    if options.is_small_model:
        arguments += ["--served-model-name", "small-qwen3", "--num-blocks", str(NUM_BLOCKS)]
    if num_gpus:
        num_sharing = -(-NUM_ENGINES // num_gpus)
        arguments += ["--device", f"cuda:{index % num_gpus}"]
        arguments += ["--gpu-memory-utilization", str(GPU_MEMORY_UTILIZATION / num_sharing)]
    return arguments


def _cpu_threads(options: Options, num_gpus: int) -> int:
    """Returns the threads of one engine: they share the cores, and small work has no use for two.

    More threads than cores would only wait for each other.
    """
    if options.is_small_model or num_gpus:
        return 1
    return max(1, (os.cpu_count() or 1) // NUM_ENGINES)


async def _create_small_model(folder: Path, console: Console) -> None:
    console.print(f"the model is a small Qwen3 with random weights: {folder}", soft_wrap=True)
    started = time.monotonic()
    # In a thread, to heed signals meanwhile: a model once begun is completed even then.
    if await asyncio.to_thread(ensure_model, folder):
        console.print(f"created it in {time.monotonic() - started:.1f} s")


async def _start(
    services: Services, options: Options, num_gpus: int, screen: Screen
) -> tuple[list[Service], Service]:
    """Returns the engines and the router once all are ready and the router knows the engines."""
    screen.say(f"starting {NUM_ENGINES} engines and a router; output: {options.log_folder}")
    engines = [
        services.start(f"engine-{index}", engine_arguments(options, index, num_gpus))
        for index in range(NUM_ENGINES)
    ]
    addresses = ",".join(engine.address for engine in engines)
    router = services.start("router", ["router", "--engines", addresses])
    timeout = SMALL_MODEL_START_SECONDS if options.is_small_model else REAL_MODEL_START_SECONDS
    await services.wait_ready([*engines, router], timeout, screen.show_service)
    async with _check_first(services):
        await wait_for_engines(router.address, NUM_ENGINES)
    return engines, router


async def _send(
    services: Services,
    router: Service,
    options: Options,
    figures: list[EngineFigures],
    screen: Screen,
) -> list[Answer]:
    """Sends the chats and samples the engines meanwhile."""
    screen.expect(options.num_requests * options.max_tokens)
    async with _check_first(services):
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(watch(figures))
                answers = await send_all(
                    router.address,
                    prompts(options.num_requests),
                    options.max_tokens,
                    screen.show_answers,
                )
                watcher.cancel()
        except* (grpc.aio.AioRpcError, DemoFailedError) as errors:
            raise _first(errors) from errors
        for engine in figures:
            await engine.sample()
    return answers


@contextlib.asynccontextmanager
async def _check_first(services: Services) -> AsyncIterator[None]:
    """Makes of a failure inside that of a service, if one has ended: that is the better news."""
    try:
        yield
    except DemoFailedError:
        await asyncio.sleep(_EXIT_SECONDS)  # it may take a moment to end
        services.check()
        raise


def _first(error: BaseException) -> DemoFailedError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AioRpcError):
        return DemoFailedError(f"a request failed: {describe(error)}")
    assert isinstance(error, DemoFailedError)
    return error
