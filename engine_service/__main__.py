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
        sys.stderr.write(f"engine_service: {_one_line(str(error))}\n")
        return 2


def _one_line(text: str) -> str:
    """Escapes what would break a line, or worse: file names and the like may be anyone's."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


if __name__ == "__main__":
    sys.exit(main())
