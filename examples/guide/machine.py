"""Says where the figures of the guide come from."""

import platform
from pathlib import Path

import torch

from examples.guide.common import figure


def main() -> None:
    """Prints the processor, the GPU and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    figure("processor", f"≈ {names[0] if names else platform.machine()}")
    figure("threads of torch", f"≈ {torch.get_num_threads()}")
    figure("GPU", f"≈ {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    figure("Python, torch", f"≈ {platform.python_version()}, {torch.__version__}")


if __name__ == "__main__":
    main()
