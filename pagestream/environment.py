"""The variables of this process that are not ours: those of CUDA, the hub and the compiler."""

import os
from collections.abc import Mapping


def variables() -> Mapping[str, str]:
    """Returns all variables of this process."""
    return os.environ
