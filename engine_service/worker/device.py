"""The device that a worker computes on, and the dtype that it computes in."""

import torch

from engine_service.config import ModelOptions
from engine_service.errors import StartupError
from engine_service.models.dtypes import COMPUTED
from engine_service.models.model_config import ModelConfig
from kernels.checks import TRITON_HEAD_DIMS


def set_up_device(options: ModelOptions) -> torch.device:
    """Makes the device that the options name the current one.

    Raises:
        StartupError: There is no such device.
    """
    if options.cpu_threads is not None:
        torch.set_num_threads(options.cpu_threads)
    if options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StartupError(f"device is {options.device!r}, but torch finds no CUDA GPU; use 'cpu'")
    index = 0 if options.device == "auto" else torch.device(options.device).index or 0
    if index >= torch.cuda.device_count():
        raise StartupError(
            f"device is {options.device!r}, but there are {torch.cuda.device_count()} CUDA GPUs, "
            "counted from 0"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def choose_dtype(options: ModelOptions, config: ModelConfig, device: torch.device) -> str:
    """Returns the name of the dtype to compute in.

    Raises:
        StartupError: `auto` leads to a dtype that the kernels do not compute in.
    """
    if options.dtype != "auto":
        return options.dtype
    dtype = config.dtype if device.type == "cuda" else "float32"
    if dtype not in COMPUTED:
        raise StartupError(
            f"dtype is 'auto' and the checkpoint is stored in {dtype}, which is not supported; "
            f"choose one of: {', '.join(COMPUTED)}"
        )
    return dtype


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tells whether torch failed for want of memory; on the CPU only the text says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_head_dim(config: ModelConfig, device: torch.device) -> None:
    """Refuses a model whose heads the GPU kernels do not handle.

    Raises:
        StartupError: Its `head_dim` is not one of theirs.
    """
    if device.type == "cuda" and config.head_dim not in TRITON_HEAD_DIMS:
        raise StartupError(
            f"head_dim of the model is {config.head_dim}; supported on a GPU is one of: "
            f"{', '.join(map(str, TRITON_HEAD_DIMS))}"
        )
