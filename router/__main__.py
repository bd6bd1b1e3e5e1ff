"""Starts a router: `python -m router --engines host:port,...`."""

import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from router.config import read_config
from router.errors import StartupError


def main() -> int:
    """Serves until SIGTERM; returns the process's exit code."""
    # transformers imports torch where it finds it, for which a router has no use: three times the
    # memory and a second more of start. None makes every import of it fail as if it were absent.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        config = read_config(sys.argv[1:])
        # Not before the options are checked: `--help` and a wrong option are answered at once.
        from router.launch import run

        return run(config)
    except StartupError as error:
        sys.stderr.write(f"router: {error}\n")
        return 2


def _end(code: int) -> NoReturn:
    """Ends the process without waiting for threads, in which a tokenizer may run for minutes."""
    logging.shutdown()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        exit_code = main()
    except Exception:
        # As the interpreter does it, but for the wait.
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    _end(exit_code)
