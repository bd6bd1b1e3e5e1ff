"""Has Triton interpret the kernels where there is no GPU; to be imported before the kernels.

Triton reads the variable when a kernel is decorated. The folders whose tests call kernels import
this in their `conftest.py`. The kernels' twins, which a CPU uses, do not care.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
