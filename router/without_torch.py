"""Keeps torch out of a router's process."""

import sys


def do_without_torch() -> None:
    """Makes every import of torch fail as if it were absent; call it before other imports.

    transformers imports torch where it finds it, for which a router has no use: three times the
    memory and a second more of start.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]
