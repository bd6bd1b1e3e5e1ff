"""Shows a fleet: once, or live until a key ends it."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pagestream.top.fleet import FleetReader, Snapshot
from pagestream.top.options import TopConfig
from pagestream.top.table import render

_PLAIN_WIDTH = 200
"""Columns of a table that goes to no terminal, so that nothing is cut."""


def run(config: TopConfig) -> int:
    """Shows the fleet; returns the exit code, which is 1 if a router was unreachable at the end."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    console = Console(highlight=False, markup=False, emoji=False)
    is_live = console.is_terminal and not console.is_dumb_terminal
    if config.options.once or config.options.json or not is_live:
        return asyncio.run(_show_once(config, console))
    return asyncio.run(_watch(config, console))


async def _show_once(config: TopConfig, console: Console) -> int:
    async with FleetReader(config) as reader:
        await reader.read()
        # Rates are differences.
        await asyncio.sleep(config.options.interval)
        snapshot = await reader.read()
    if config.options.json:
        print(json.dumps(dataclasses.asdict(snapshot), indent=2))
    else:
        if not console.is_terminal:
            console = Console(file=sys.stdout, width=_PLAIN_WIDTH, color_system=None)
        console.print(render(snapshot, console.width))
    return int(any(router.error for router in snapshot.routers))


async def _watch(config: TopConfig, console: Console) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    with (
        Live(console=console, screen=True, auto_refresh=False) as live,
        _keys(lambda key: ended.set() if key in b"qQ" else None),
    ):
        view = _View(live)
        loop.add_signal_handler(signal.SIGWINCH, view.draw)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(_look(config, view))
            await ended.wait()
            looking.cancel()
    return 0


async def _look(config: TopConfig, view: "_View") -> None:
    async with FleetReader(config) as reader:
        while True:
            view.show(await reader.read())
            await asyncio.sleep(config.options.interval)


class _View:
    """The last snapshot, drawn to the size that the terminal has."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._snapshot: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Draws a new snapshot."""
        self._snapshot = snapshot
        self.draw()

    def draw(self) -> None:
        """Draws the last snapshot again."""
        if self._snapshot is None:
            return
        width, height = self._live.console.size
        tables = render(self._snapshot, width, height)
        self._live.update(Group(tables, Text("q ends", style="dim")), refresh=True)


@contextlib.contextmanager
def _keys(on_key: Callable[[bytes], None]) -> Iterator[None]:
    """Calls `on_key` with each key, without waiting for the end of a line."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        keys = os.read(descriptor, 1024)
        if not keys:
            loop.remove_reader(descriptor)
        for key in keys:
            on_key(bytes([key]))

    try:
        tty.setcbreak(descriptor)
        loop.add_reader(descriptor, read)
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
