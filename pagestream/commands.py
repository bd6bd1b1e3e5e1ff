"""The commands, and where each is."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from pagestream.environment import silence_grpc
from servicekit.options import OptionReader


@dataclass(frozen=True, slots=True)
class Command:
    """One command."""

    summary: str
    """What it does, for `pagestream --help`."""
    module: str
    """Has a function `main`; imported only when the command runs."""
    options: str = ""
    """Module whose `READER` reads the command's options, if it has any."""
    is_service: bool = False
    """Whether it also runs by `python -m`: then its `main` is told how it was called."""

    is_client: bool = False
    """Whether it connects to routers and says itself what goes wrong: then gRPC says nothing."""

    def run(self, name: str, arguments: Sequence[str]) -> int:
        """Runs the command with the arguments behind its name; returns the exit code."""
        if self.is_client:
            silence_grpc()
        main = importlib.import_module(self.module).main
        exit_code: int = (
            main(arguments, f"pagestream {name}") if self.is_service else main(arguments)
        )
        return exit_code

    def reader(self) -> OptionReader | None:
        """Returns what reads its options, if it has any; imports only their definitions."""
        if not self.options:
            return None
        reader: OptionReader = importlib.import_module(self.options).READER
        return reader


COMMANDS = {
    "serve": Command(
        "Serves a model on this machine: a router and one engine per GPU.",
        "pagestream.serve.command",
        options="pagestream.serve.options",
    ),
    "doctor": Command(
        "Checks what this machine has to serve, and says what to do.",
        "pagestream.doctor.command",
        options="pagestream.doctor.options",
    ),
    "engine": Command(
        "Runs an engine: one model on the GPUs of this machine.",
        "engine_service.__main__",
        options="engine_service.config",
        is_service=True,
    ),
    "router": Command(
        "Runs a router in front of engines.",
        "router.__main__",
        options="router.config",
        is_service=True,
    ),
    "certs": Command(
        "Makes a CA and certificates for development.",
        "pagestream.certs.command",
        options="pagestream.certs.options",
    ),
    "keys": Command(
        "Makes, lists and revokes the API keys of a router.",
        "pagestream.keys.command",
        options="pagestream.keys.options",
    ),
    "completion": Command(
        "Prints a script that lets bash, zsh or fish complete commands and options.",
        "pagestream.completion.command",
        options="pagestream.completion.options",
    ),
    "chat": Command(
        "Chats with a model in the terminal.",
        "pagestream.chat.command",
        options="pagestream.chat.options",
        is_client=True,
    ),
    "top": Command(
        "Shows a fleet: state, load, caches, rates, latencies.",
        "pagestream.top.command",
        options="pagestream.top.options",
        is_client=True,
    ),
    "bench": Command(
        "Sends requests to a router and measures.",
        "pagestream.bench.command",
        options="pagestream.bench.options",
        is_client=True,
    ),
}
"""By name."""
