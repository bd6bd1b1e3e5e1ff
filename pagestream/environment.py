"""Where this process runs: variables that are not ours, such as CUDA's, and its interpreter."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

API_KEY = "PAGESTREAM_API_KEY"
"""The variable that holds a client's API key."""


def variables() -> Mapping[str, str]:
    """Returns all variables of this process."""
    return os.environ


def api_key() -> str:
    """Returns the API key that a variable holds; "" is none."""
    return os.environ.get(API_KEY, "")


def silence_grpc() -> None:
    """Keeps gRPC's library from writing lines of its own, unless the variable says otherwise.

    To be called before gRPC is imported.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def python_modules() -> list[str]:
    """Returns the command that runs modules of the same packages as this process has."""
    # As `python -m pagestream` in a clone: our packages are found in the folder.
    is_from_here = sys.path[0] in ("", str(Path.cwd()))
    return [sys.executable, *([] if is_from_here else ["-P"]), "-m"]
