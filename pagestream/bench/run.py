"""A load from the first connection to the report."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pagestream.bench.grpc_target import GrpcTarget
from pagestream.bench.http_target import HttpTarget
from pagestream.bench.load import Load
from pagestream.bench.options import BenchConfig
from pagestream.bench.report import print_report, to_json
from pagestream.bench.target import Model, choose
from pagestream.bench.workload import Workload
from pagestream.errors import CommandFailed
from protos.wire.printable import shown
from servicekit.errors import StartupError
from servicekit.process import exit_code_of

_DRAW_SECONDS = 0.25


def run(config: BenchConfig) -> int:
    """Measures and reports; returns the exit code, which is 1 if no request succeeded.

    Raises:
        StartupError: The file for the results cannot be written, or the requests are too long.
        CommandFailed: The server does not answer.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if config.report.output is not None:
        _try_to_write(config.report.output)
    return asyncio.run(_run(config))


async def _run(config: BenchConfig) -> int:
    options = config.workload
    if config.is_http:
        target: HttpTarget | GrpcTarget = HttpTarget(
            config.address, config.connection, config.load.max_open, options
        )
    else:
        target = GrpcTarget(config.address, config.connection, config.load.connections, options)
    async with target:
        model = choose(await target.models(), options.model, config.address)
        _check_length(config, model)
        load = Load(target, model.name, Workload(options), config.load, options.seed)
        async with _progress(load, config):
            was_interrupted = await _until_ended_or_interrupted(load)
    results = load.results
    print_report(Console(highlight=False, markup=False, emoji=False), config, results)
    if config.report.output is not None:
        document = json.dumps(to_json(config, shown(model.name), results), indent=1)
        try:
            config.report.output.write_text(document + "\n")
        except OSError as error:
            raise CommandFailed(f"the results cannot be written: {error.strerror}") from None
    if was_interrupted:
        return exit_code_of(signal.SIGINT)
    return int(not results.num_succeeded)


async def _until_ended_or_interrupted(load: Load) -> bool:
    """Runs a load; returns whether Ctrl-C ended it."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(load.run())
        loop.add_signal_handler(signal.SIGINT, running.cancel)
        try:
            await asyncio.wait([running])
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return running.cancelled()


@contextlib.asynccontextmanager
async def _progress(load: Load, config: BenchConfig) -> AsyncIterator[None]:
    """Shows how far a load is, on a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    total = config.load.max_requests
    progress = Progress(
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
    )
    bar = progress.add_task("", total=total or config.load.seconds)

    async def draw() -> None:
        while True:
            results = load.results
            done = (
                float(results.num_ended) if total else min(load.seconds, config.load.seconds or 0)
            )
            rate = results.num_output_tokens / (load.seconds or 1)
            text = (
                f"{results.num_ended:,} ended, {results.num_failed:,} failed, "
                f"{results.num_started - results.num_ended:,} open, {rate:,.0f} tokens/s"
            )
            progress.update(bar, completed=done, description=text)
            progress.refresh()
            await asyncio.sleep(_DRAW_SECONDS)

    with progress:
        async with asyncio.TaskGroup() as tasks:
            drawing = tasks.create_task(draw())
            yield
            drawing.cancel()


def _check_length(config: BenchConfig, model: Model) -> None:
    prompt, output = config.workload.prompt_tokens.high, config.workload.output_tokens.high
    if model.max_length and prompt + output > model.max_length:
        raise StartupError(
            f"--prompt-tokens and --output-tokens are {prompt} + {output} at most, and "
            f"{shown(model.name)} takes {model.max_length} together"
        )


def _try_to_write(path: Path) -> None:
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise StartupError(
            f"--output {shown(str(path))} cannot be written: {error.strerror}"
        ) from None
