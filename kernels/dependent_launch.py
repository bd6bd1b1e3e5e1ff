"""Kernels that start before the one in front of them has ended: programmatic dependent launch.

Source: CUDA programming guide, "Programmatic Dependent Launch and Synchronization". What a kernel
does before it waits, such as reading its weights, then costs no time of its own. Hopper and later.
"""

import functools

import torch
import triton
import triton.language as tl

_MIN_CAPABILITY = (9, 0)


def dependent_launch(tensor: torch.Tensor) -> dict[str, bool]:
    """Returns what to pass to a kernel that calls `wait_for_inputs`, on the device of a tensor."""
    if tensor.device.type == "cpu" or not _is_supported(tensor.device):
        return {"IS_DEPENDENT": False}
    return {"IS_DEPENDENT": True, "launch_pdl": True}


@functools.cache
def _is_supported(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


@triton.jit
def wait_for_inputs(IS_DEPENDENT: tl.constexpr) -> None:
    """Waits for all that was launched before, then lets the next kernel start.

    Every program calls it, once. Before that it writes nothing, and reads nothing that a kernel
    still under way may write. Where the kernel in front waits like this itself, as it lets the next
    one start only then, no other than that one is.
    """
    if IS_DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
