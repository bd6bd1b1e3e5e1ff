"""Shows a fleet."""

from collections.abc import Sequence

from pagestream.entry import run_command
from pagestream.extra import import_with_extra
from pagestream.top.options import read_config


def main(arguments: Sequence[str]) -> int:
    """Shows a fleet until told to end, or once; returns the exit code."""

    def show() -> int:
        config = read_config(arguments)
        code: int = import_with_extra("pagestream.top.screen").run(config)
        return code

    return run_command("top", show)
