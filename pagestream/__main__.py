"""Runs a command: `pagestream COMMAND ...` or `python -m pagestream COMMAND ...`."""

import contextlib
import signal
import sys

from pagestream.commands import COMMANDS
from servicekit.log import print_error
from servicekit.nearest import did_you_mean
from servicekit.process import exit_at_once, exit_code_of
from servicekit.version import software_version

_USAGE = "usage: pagestream COMMAND [OPTIONS]"
_SERVICES = ("router", "engine_service")
"""Packages that the image of the other service leaves out."""


def main() -> int:
    """Runs the command that the command line names; returns its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in {"--help", "-h", "help"}:
        print(_help())
        return 0
    if name in {"--version", "version"}:
        print(f"pagestream {software_version()}")
        return 0
    if name not in COMMANDS:
        print_error("pagestream", ValueError(_unknown(name)))
        return 2
    try:
        return COMMANDS[name].run(name, arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _SERVICES:
            raise
        print_error("pagestream", ValueError(_not_here(name, package)))
        return 2


def run() -> None:
    """Runs the command and ends the process."""
    try:
        exit_code = main()
    # Nobody reads the output any more, as behind `| head`.
    except BrokenPipeError:
        exit_code = exit_code_of(signal.SIGPIPE)
    except Exception:
        # As the interpreter does it, but for the wait below.
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    # Not by way of the threads, in which a router's tokenizer may run for minutes.
    exit_at_once(exit_code)


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        (_USAGE, "", *rows, "", "`pagestream COMMAND --help` lists the options of a command.")
    )


def _not_here(name: str, package: str) -> str:
    return f"{name!r} needs the package {package!r}, which this image of one service leaves out"


def _unknown(name: str) -> str:
    advice = did_you_mean(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
    return f"there is no command {name[:50]!r}{advice}"


if __name__ == "__main__":
    run()
