"""What the commands of clients have in common: how they read their line and how they end."""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from pagestream.errors import CommandFailed
from servicekit.errors import StartupError
from servicekit.log import print_error
from servicekit.options import Options
from servicekit.process import exit_code_of
from servicekit.values import Flags


def run_command(name: str, command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code: 2 if it was misunderstood, 1 if it failed.

    Args:
        name: The command's, for the line that says why it ended.
        command: Returns the exit code.
    """
    try:
        return command()
    except StartupError as error:
        print_error(f"pagestream {name}", error)
        return 2
    except CommandFailed as error:
        print_error(f"pagestream {name}", error)
        return 1
    except KeyboardInterrupt:
        return exit_code_of(signal.SIGINT)
    except BrokenPipeError:
        # Nobody reads the output any more; what is still buffered must not raise it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_code_of(signal.SIGPIPE)


def split_arguments(
    arguments: Sequence[str], groups: Mapping[str, type[Options]]
) -> tuple[list[str], list[str]]:
    """Returns the arguments that stand by themselves, and the options with their values."""
    flags = {
        option.name
        for group in groups.values()
        for option in dataclasses.fields(group)
        if isinstance(option.metadata["values"], Flags)
    }
    alone: list[str] = []
    options: list[str] = []
    left = iter(arguments)
    for argument in left:
        if not argument.startswith("-") or argument == "-":
            alone.append(argument)
            continue
        options.append(argument)
        name = argument.removeprefix("--").removeprefix("no-").replace("-", "_")
        has_value = argument.startswith("--") and "=" not in argument and argument != "--help"
        if has_value and name not in flags:
            options.extend(value for value in (next(left, None),) if value is not None)
    return alone, options
