"""The commands, and where each is."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Main = Callable[[Sequence[str]], int]
"""Takes the arguments behind the command's name and returns the exit code."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command."""

    summary: str
    """What it does, for `pagestream --help`."""
    module: str
    """Has a function `main`; imported only when the command runs."""

    def load(self) -> Main:
        """Returns the function that runs the command."""
        main: Main = importlib.import_module(self.module).main
        return main


COMMANDS = {
    "engine": Command(
        "Runs an engine: one model on the GPUs of this machine.", "engine_service.__main__"
    ),
    "router": Command("Runs a router in front of engines.", "router.__main__"),
    "chat": Command("Chats with a model in the terminal.", "pagestream.chat.command"),
    "top": Command(
        "Shows a fleet: state, load, caches, rates, latencies.", "pagestream.top.command"
    ),
    "bench": Command("Sends requests to a router and measures.", "pagestream.bench.command"),
}
"""By name."""
