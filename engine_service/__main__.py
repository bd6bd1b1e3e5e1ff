"""Starts an engine: `python -m engine_service --model ... --port ...`."""

import sys

from engine_service.config import read_config
from engine_service.errors import StartupError


def main() -> int:
    """Serves until SIGTERM; returns the process's exit code."""
    try:
        config = read_config(sys.argv[1:])
        # Not before the options are checked: `--help` and a wrong option are answered at once.
        from engine_service.launch import run

        return run(config)
    except StartupError as error:
        sys.stderr.write(f"engine_service: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
