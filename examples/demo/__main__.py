"""Starts the demo: `python -m examples.demo`."""

import signal
import sys


def main() -> int:
    """Runs the demo; returns the process's exit code."""
    # Until the demo has a handler, which is before it starts anything, Ctrl-C ends it without a
    # word; Python's own would print where it was while the import below took its moment.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from examples.demo.command import run_command

    try:
        return run_command(sys.argv[1:])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # between the end of that handler and here


if __name__ == "__main__":
    sys.exit(main())
