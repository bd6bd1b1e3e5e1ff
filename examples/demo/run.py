"""The demo from the first process to the table."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console

from examples.demo.errors import DemoFailedError
from examples.demo.figures import EngineFigures, gpu_count, watch
from examples.demo.fleet import NUM_ENGINES, engine_gpus, start_fleet
from examples.demo.load import Answer, describe, prompts, send_all
from examples.demo.model import Model
from examples.demo.report import print_report
from examples.demo.screen import Screen, answer_panel
from examples.demo.services import Service, Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run."""

    model: Model
    num_ranks: int
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
    if options.model.is_random:
        answer_title += ": noise, for the weights are random"
    num_ranks = options.num_ranks
    num_gpus = await asyncio.to_thread(gpu_count)
    async with Services(options.log_folder) as services:
        with Screen(console, answer_title) as screen:
            ranks = f" of {num_ranks} ranks each" if num_ranks > 1 else ""
            screen.say(
                f"starting {NUM_ENGINES} engines{ranks} and a router with {options.model.path}"
            )
            screen.say(f"their output is in {options.log_folder}")
            fleet = await start_fleet(
                services, options.model, num_gpus, screen.show_service, num_ranks
            )
            router, engines = fleet.router, fleet.engines
            screen.say(f"sending {options.num_requests} chats at once")
            figures = [
                EngineFigures(service=engine, gpus=engine_gpus(index, num_gpus, num_ranks))
                for index, engine in enumerate(engines)
            ]
            started = time.perf_counter()
            answers = await _send(services, router, options, figures, screen)
            seconds = time.perf_counter() - started
        console.print(answer_panel(answers[0], answer_title))
        print_report(console, answers, figures, seconds, are_answers_known=options.model.is_small)
        for service in (router, *engines):
            # Not in a table, whose columns would break it.
            console.print(f"metrics of {service.name}: {service.metrics_url}")
        if options.keep_serving:
            console.print(f"the router serves on {router.address} until Ctrl-C")
            while True:
                services.check()
                await asyncio.sleep(1.0)


async def _send(
    services: Services,
    router: Service,
    options: Options,
    figures: list[EngineFigures],
    screen: Screen,
) -> list[Answer]:
    """Sends the chats and samples the engines meanwhile."""
    screen.expect(options.num_requests * options.max_tokens)
    async with services.failures_first():
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


def _first(error: BaseException) -> DemoFailedError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AioRpcError):
        return DemoFailedError(f"a request failed: {describe(error)}")
    assert isinstance(error, DemoFailedError)
    return error
