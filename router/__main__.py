"""Starts a router: `python -m router --engines host:port,...`."""

import signal
import sys
from collections.abc import Callable, Sequence

from router.config import PROGRAM, RouterConfig, read_config
from router.errors import StartupError
from router.without_torch import do_without_torch
from servicekit.log import print_error, set_up_logging
from servicekit.process import exit_at_once, exit_code_of


def main(arguments: Sequence[str], program: str = PROGRAM) -> int:
    """Serves until SIGTERM; returns the process's exit code.

    Args:
        arguments: The command line without the program's name.
        program: The command as it was called, for `--help`.
    """
    do_without_torch()
    try:
        config = read_config(arguments, program=program)
        run = _import_run(config)
        set_up_logging(config.log_level)
        return run(config)
    except StartupError as error:
        print_error("router", error)
        return 2
    # Before the service takes signals as it should, and after.
    except KeyboardInterrupt:
        return exit_code_of(signal.SIGINT)


def _import_run(config: RouterConfig) -> Callable[[RouterConfig], int]:
    # Not before the options are checked: `--help` and a wrong option are answered at once.
    if config.workers == 1:
        from router.launch import run

        return run
    from router.workers.supervisor import supervise

    return supervise


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
    except Exception:
        # As the interpreter does it, but for the wait below.
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    # Not by way of the threads, in which a tokenizer may run for minutes.
    exit_at_once(exit_code)
