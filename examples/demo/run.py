"""The demo from the first process to the table."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console

from examples.demo.figures import EngineFigures, gpu_count, watch
from examples.demo.load import Answer, prompts, send_all, wait_for_engines
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


class DemoFailedError(Exception):
    """A request failed though the services run; the message says how."""


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
        DemoFailedError: A request failed.
    """
    num_gpus = await asyncio.to_thread(gpu_count)
    async with Services(options.log_folder) as services:
        with Screen(console) as screen:
            screen.say(f"starting {NUM_ENGINES} engines and a router; output: {options.log_folder}")
            engines = [
                _start_engine(services, options, index, num_gpus) for index in range(NUM_ENGINES)
            ]
            addresses = ",".join(engine.address for engine in engines)
            router = services.start("router", ["router", "--engines", addresses])
            timeout = (
                SMALL_MODEL_START_SECONDS if options.is_small_model else REAL_MODEL_START_SECONDS
            )
            await services.wait_ready([*engines, router], timeout, screen.show_service)
            await wait_for_engines(router.address, NUM_ENGINES)

            screen.say(f"sending {options.num_requests} chats at once")
            figures = [
                EngineFigures(service=engine, gpu=index % num_gpus if num_gpus else None)
                for index, engine in enumerate(engines)
            ]
            started = time.perf_counter()
            answers = await _send(services, router, options, figures, screen)
            seconds = time.perf_counter() - started
        console.print(answer_panel(answers[0]))
        print_report(console, answers, figures, seconds)
        if options.keep_serving:
            console.print(f"the router serves on {router.address} until Ctrl-C")
            while True:
                services.check()
                await asyncio.sleep(1.0)


def _start_engine(services: Services, options: Options, index: int, num_gpus: int) -> Service:
    arguments = ["engine_service", "--model", options.model, "--block-size", str(BLOCK_SIZE)]
    # On few cores, more threads would only wait for each other.
    arguments += ["--cpu-threads", "1"]
    if options.is_small_model:
        arguments += ["--served-model-name", "small-qwen3", "--num-blocks", str(NUM_BLOCKS)]
    if num_gpus:
        num_sharing = -(-NUM_ENGINES // num_gpus)
        arguments += ["--device", f"cuda:{index % num_gpus}"]
        arguments += ["--gpu-memory-utilization", str(GPU_MEMORY_UTILIZATION / num_sharing)]
    return services.start(f"engine-{index}", arguments)


async def _send(
    services: Services,
    router: Service,
    options: Options,
    figures: list[EngineFigures],
    screen: Screen,
) -> list[Answer]:
    """Sends the chats and samples the engines meanwhile."""
    screen.expect(options.num_requests * options.max_tokens)
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
    except* (grpc.aio.AioRpcError, OSError) as errors:
        # That a service has ended is the better news; it may take a moment to.
        await asyncio.sleep(_EXIT_SECONDS)
        services.check()
        raise DemoFailedError(_describe(errors)) from errors
    for engine in figures:
        await asyncio.to_thread(engine.sample)
    return answers


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AioRpcError):
        return f"a request failed: {error.code().name}: {error.details()}"
    return f"an engine's metrics cannot be read: {error}"
