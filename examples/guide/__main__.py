"""Runs every step and writes what it prints into the guide's pages: `make guide`."""

import subprocess
import sys

from examples.guide.pages import pages


def run(module: str) -> str:
    """Returns what `python -m module` prints."""
    print(f"python -m {module}", file=sys.stderr)
    command = [sys.executable, "-m", module]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


for page in pages():
    page.rewrite(run)
