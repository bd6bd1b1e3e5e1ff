"""For tests in which a kernel starts before the one in front of it has ended."""

import pytest
import torch

from tests.kernels.targets import Target

GPU = Target(device="cuda", dtype=torch.bfloat16)
EPS = 1e-6


def on_gpu_that_overlaps(test):
    overlaps = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    needs = pytest.mark.skipif(not overlaps, reason="needs a GPU with dependent launches")
    return pytest.mark.gpu(needs(test))


def weight(*shape):
    return GPU.randn(*shape) * 0.1
