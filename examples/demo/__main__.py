"""Serves 60 chats through one router and two engines, all started here: `make demo`.

Without --model it creates a small Qwen3 with random weights; its answers are words without sense.
"""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from examples.demo.model import ROOT, ensure_model
from examples.demo.run import DemoFailedError, Options, run
from examples.demo.services import ServiceFailedError


def main() -> int:
    """Runs the demo; returns the process's exit code."""
    console = Console(highlight=False)
    try:
        options = _parse(sys.argv[1:], console)
        return asyncio.run(_run_until_signal(options, console))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parse(arguments: list[str], console: Console) -> Options:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument(
        "--model", default="", help="folder or hub ID of a Qwen3 checkpoint (default: a small one)"
    )
    parser.add_argument("--requests", type=int, default=60, help="chats at once (default 60)")
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="the most tokens of an answer (default 256)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".demo",
        help="where the small model and the services' output go (default .demo)",
    )
    parser.add_argument(
        "--keep-serving", action="store_true", help="leave the services running until Ctrl-C"
    )
    given = parser.parse_args(arguments)
    if given.requests < 1 or given.max_tokens < 1:
        parser.error("--requests and --max-tokens must be at least 1")
    return Options(
        model=given.model or str(_small_model(given.folder / "model", console)),
        is_small_model=not given.model,
        num_requests=given.requests,
        max_tokens=given.max_tokens,
        log_folder=given.folder / "logs",
        keep_serving=given.keep_serving,
    )


def _small_model(folder: Path, console: Console) -> Path:
    started = time.monotonic()
    if ensure_model(folder):
        seconds = time.monotonic() - started
        console.print(f"created a small Qwen3 with random weights in {seconds:.1f} s: {folder}")
    return folder


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
    except (ServiceFailedError, DemoFailedError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
