"""Starts a router: `python -m router --engines host:port,...`."""

import sys

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


if __name__ == "__main__":
    sys.exit(main())
