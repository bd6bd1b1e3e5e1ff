"""Python programs in which Triton compiles, while the tests' own process interprets."""

import os
import subprocess
import sys
from pathlib import Path


def run_uninterpreted(cache: Path, *arguments: str | Path) -> str:
    """Runs Python with the arguments, and a cache of its own for what it compiles.

    Returns what it wrote; a program that fails fails the test, and shows its errors.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
