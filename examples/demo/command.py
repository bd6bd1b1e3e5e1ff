"""The demo as a command: its options, its signals and its exit codes."""

import argparse
import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.demo.errors import DemoFailedError
from examples.demo.model import ROOT, Model
from examples.demo.run import Options, run

_DESCRIPTION = """Serves 60 chats through one router and two engines, all started here, and says how
many of the answers are right."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs the demo as these arguments say; returns the process's exit code."""
    options = parse(arguments)
    return asyncio.run(_run_until_signal(options, Console(highlight=False)))


def parse(arguments: Sequence[str]) -> Options:
    """Reads the options; wrong ones end the process with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=_DESCRIPTION)
    parser.add_argument(
        "--model",
        default="",
        help='folder or hub ID of a Qwen3 checkpoint, or "random" for the demo model with random '
        "weights (default: the demo model)",
    )
    parser.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=1,
        help="ranks of each engine (default 1); on the CPU where there are fewer GPUs than that",
    )
    parser.add_argument("--requests", type=int, default=60, help="chats at once (default 60)")
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="the most tokens of an answer (default 256)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".demo",
        help="where the services' output goes (default .demo)",
    )
    parser.add_argument(
        "--keep-serving", action="store_true", help="leave the services running until Ctrl-C"
    )
    given = parser.parse_args(arguments)
    if min(given.tensor_parallel_size, given.requests, given.max_tokens) < 1:
        parser.error("--tensor-parallel-size, --requests and --max-tokens must be at least 1")
    return Options(
        model=Model.named(given.model),
        num_ranks=given.tensor_parallel_size,
        num_requests=given.requests,
        max_tokens=given.max_tokens,
        log_folder=given.folder / "logs",
        keep_serving=given.keep_serving,
    )


async def _run_until_signal(options: Options, console: Console) -> int:
    """Runs the demo; a signal cancels it, and on the way out it stops the services."""
    task = asyncio.current_task()
    assert task is not None
    received: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        received.append(number)
        # A second one cuts short the time that the services have to end by themselves.
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        await run(options, console)
    except asyncio.CancelledError:
        if not received:
            raise
        console.print("interrupted; every service is stopped")
        return 128 + received[0]
    # An OSError: a folder that cannot be written, a full disk.
    except (DemoFailedError, OSError) as error:
        console.print(f"the demo failed: {error}", markup=False, soft_wrap=True)
        return 1
    return 0
