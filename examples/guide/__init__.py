"""The steps of docs/guide, and what they share."""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where kernels run."""

# Triton then interprets kernels. It reads this when it is imported, which the steps do.
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
