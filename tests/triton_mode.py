"""Has Triton interpret the kernels where there is no GPU; to be imported before the kernels.

Triton reads the variable when a kernel is decorated. The folders whose tests call kernels import
this in their `conftest.py`. The kernels' twins, which a CPU uses, do not care.
"""

import functools
import inspect
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from triton import language
from triton.runtime import interpreter


@functools.cache
def _builtin_names(package):
    return [
        name for name, member in inspect.getmembers(package) if language.core.is_builtin(member)
    ]


def _patch_builtin(package, builder, scope):
    names = _builtin_names(package)
    # Unless the kernel has done so that calls this function.
    if names and language.core.is_builtin(getattr(package, names[0])):
        for name in names:
            interpreter._patch_attr(package, name, getattr(package, name), builder, scope)


# Triton looks through the whole language at each call of each function inside a kernel.
interpreter._patch_builtin = _patch_builtin
