"""The GPUs of this machine, found without torch."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from servicekit.errors import StartupError
from servicekit.values import quoted

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that CUDA goes by: which GPUs a program sees, by number or ID."""
_SECONDS = 20.0
"""For nvidia-smi, which wakes up the driver where nothing else has."""


def visible_gpus(environment: Mapping[str, str], num_gpus: int) -> list[str]:
    """Returns the GPUs that a program started from here would see, as CUDA's variable names them.

    Args:
        environment: Variables of this process.
        num_gpus: GPUs of this machine.

    Raises:
        StartupError: The variable names a GPU that there is not.
    """
    chosen = environment.get(VISIBLE)
    if chosen is None:
        return [str(number) for number in range(num_gpus)]
    visible: list[str] = []
    for name in map(str.strip, chosen.split(",")):
        # CUDA stops at the first that is none, and -1 is the usual way to write that.
        if not name or name.startswith("-"):
            break
        if name.isdecimal() and int(name) >= num_gpus:
            raise StartupError(
                f"{VISIBLE} is {quoted(chosen)}, but this machine has "
                f"{num_gpus or 'no'} GPU{'' if num_gpus == 1 else 's'}; correct or unset it"
            )
        visible.append(name)
    return visible


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Returns how many NVIDIA GPUs there are; some seconds pass where the driver sleeps."""
    listed = query(["index"])
    if listed is not None:
        return len(listed)
    return sum(file.name.removeprefix("nvidia").isdecimal() for file in devices.glob("nvidia*"))


def query(fields: Sequence[str]) -> list[list[str]] | None:
    """Asks nvidia-smi about each GPU.

    Args:
        fields: What to ask, such as "name" or "memory.total".

    Returns:
        The answers of each GPU, or None if there is no answer.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line]
