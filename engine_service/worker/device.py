"""A worker's device and dtype."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from engine_service.config import ModelOptions
from engine_service.errors import StartupError
from engine_service.models.model_config import ModelConfig
from engine_service.worker.toolchain import check_toolchain, first_line
from kernels.checks import TRITON_HEAD_DIMS

_MIN_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that Triton supports, according to Triton."""

logger = logging.getLogger(__name__)


def set_up_device(options: ModelOptions, rank: int = 0) -> torch.device:
    """Makes a rank's device the current one: the GPU that the options name, or a later one.

    Ranks that compute on the CPU share its cores.

    If `auto` finds no suitable GPU, a warning says why the CPU is used.

    Raises:
        StartupError: There is no such device, it is too old, or the tools to build its kernels are
            missing.
    """
    size = options.tensor_parallel_size
    _set_num_threads(options.cpu_threads, size)
    if options.device == "cpu":
        return torch.device("cpu")
    fault = _why_no_gpu()
    if fault is not None and options.device != "auto":
        raise StartupError(
            f"device is {options.device!r}, but torch finds no CUDA GPU ({fault}); use 'cpu'"
        )
    if options.device == "auto":
        fault = fault or _why_too_old(0)
        if fault is not None:
            if rank == 0:
                logger.warning(
                    "gpu unusable device=cpu dtype=%s detail=%s; the model runs on the CPU, many "
                    "times slower than on a GPU",
                    "float32" if options.dtype == "auto" else options.dtype,
                    fault,
                )
            return torch.device("cpu")
    first = 0 if options.device == "auto" else torch.device(options.device).index or 0
    if first + size > torch.cuda.device_count():
        ranks = f" and tensor_parallel_size is {size}" if size > 1 else ""
        raise StartupError(
            f"device is {options.device!r}{ranks}, but there are {torch.cuda.device_count()} CUDA "
            "GPUs, numbered from 0"
        )
    index = first + rank
    if fault := _why_too_old(index):
        raise StartupError(f"device is {options.device!r}, but {fault}; use 'cpu'")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    check_toolchain()
    return device


def _set_num_threads(wanted: int | None, num_ranks: int) -> None:
    if wanted is None and num_ranks > 1:
        wanted = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    if wanted is not None:
        torch.set_num_threads(wanted)


def use_near_cpus(device: torch.device) -> None:
    """Binds this process to the CPUs near a GPU, of those that it may use, if they are known."""
    gpu: Any = torch.cuda.get_device_properties(device)
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    file = Path("/sys/bus/pci/devices") / address / "local_cpulist"
    try:
        near = parse_cpus(file.read_text())
    except (OSError, ValueError):
        return
    if not near:
        return
    cpus = near & os.sched_getaffinity(0)
    if cpus:
        os.sched_setaffinity(0, cpus)
        logger.info("cpus chosen device=%s num_cpus=%d", device, len(cpus))
    else:
        logger.warning("near cpus not allowed device=%s num_near=%d", device, len(near))


def parse_cpus(text: str) -> set[int]:
    """Reads a list of CPUs as the kernel writes it, such as "0-3,8".

    Raises:
        ValueError: It is none.
    """
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def choose_dtype(options: ModelOptions, config: ModelConfig, device: torch.device) -> str:
    """Returns the name of the dtype to compute in."""
    if options.dtype != "auto":
        return options.dtype
    return config.dtype if device.type == "cuda" else "float32"


def _why_no_gpu() -> str | None:
    """Returns why torch sees no GPU at all, or None if it sees one."""
    if torch.cuda.is_available():
        return None
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return f"torch {torch.__version__} is built without CUDA: install a build with CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        # For example: no driver, or one too old for this torch.
        return first_line(error).rstrip(".")
    return "torch sees no GPU"


def _why_too_old(index: int) -> str | None:
    """Returns why this GPU is too old for the kernels, or None if it is not."""
    capability = torch.cuda.get_device_capability(index)
    if capability >= _MIN_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name(index)} is too old: its compute capability is "
        f"{_as_version(capability)}, but Triton needs {_as_version(_MIN_CAPABILITY)} or more"
    )


def _as_version(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether torch ran out of memory; on the CPU only the message shows it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_head_dim(config: ModelConfig, device: torch.device) -> None:
    """Refuses a model whose heads the GPU kernels do not support.

    Raises:
        StartupError: They do not support its `head_dim`.
    """
    if device.type == "cuda" and config.head_dim not in TRITON_HEAD_DIMS:
        raise StartupError(
            f"the model's head_dim is {config.head_dim}; supported on a GPU: "
            f"{', '.join(map(str, TRITON_HEAD_DIMS))}"
        )
