"""Settings of the whole test process."""

import os

import torch

# Triton reads it when a kernel is decorated, so that it must stand here: a test collected earlier
# may be the first to import the kernels. The kernels' twins, which a CPU uses, do not care.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
