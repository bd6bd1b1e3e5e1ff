"""Measures a router."""

from collections.abc import Sequence

from pagestream.bench.options import read_config
from pagestream.entry import run_command
from pagestream.extra import import_with_extra


def main(arguments: Sequence[str]) -> int:
    """Measures a router and prints the results; returns the exit code."""

    def measure() -> int:
        config = read_config(arguments)
        code: int = import_with_extra("pagestream.bench.run").run(config)
        return code

    return run_command("bench", measure)
