"""Programmatic dependent launch: a kernel starts before the previous one has ended.

Source: CUDA programming guide, "Programmatic Dependent Launch and Synchronization". Work before
the kernel waits, such as reading its weights, then takes no extra time. Hopper and later.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

_MIN_CAPABILITY = (9, 0)


def dependent_launch(tensor: torch.Tensor) -> dict[str, bool]:
    """Returns the launch arguments of a kernel that calls `wait_for_inputs`, on this device."""
    if tensor.device.type == "cpu" or not _is_supported(tensor.device):
        return {"IS_DEPENDENT": False}
    return {"IS_DEPENDENT": True, "launch_pdl": True}


@functools.cache
def _is_supported(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


@triton.jit
def wait_for_inputs(IS_DEPENDENT: tl.constexpr) -> None:
    """Waits for all earlier kernels, then lets the next kernel start.

    A program calls it once, or ends without having written anything, if others of its kernel wait
    (an exception is below). If its warps run different code, each calls it before what it reads.
    Before the call it writes nothing, and reads nothing that a running kernel may write. The
    previous kernel is the only one that may be running, since it lets the next one start only after
    its own waits. So one that always follows the same kernel may read before its wait what that one
    does not write, and write what that one does not touch. If that is all that its programs do, it
    suffices that one of them waits, as long as the others do not let the next kernel start
    (`paged_attention_decode`, behind shared prefixes).

    Products of up to 64 rows are the exception (`product_copies.py`): they let the next kernel
    start before they wait. Behind them, these and the kernel in front of them may be running.
    """
    if IS_DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


# `wait_for_inputs` in two halves, for kernels in Gluon, which calls no functions of Triton's.
@gluon.jit
def wait_for_kernel_in_front() -> None:
    """Waits for all earlier kernels."""
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def launch_dependents() -> None:
    """Lets the next kernel start."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // dummy $0",
        "=r", [], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
