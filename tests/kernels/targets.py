"""Where and in which type a kernel is tested, and how far it may be from the truth."""

from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device and a type. On the CPU the kernel is interpreted, where bfloat16 does not work."""

    device: str
    dtype: torch.dtype

    @property
    def tolerance(self) -> float:
        """The largest ||out - truth|| / ||truth|| of any row; the truth is computed in float64."""
        return {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[self.dtype]

    def randn(self, *shape: int) -> torch.Tensor:
        """Draws a normal tensor, from the CPU's generator on every device."""
        return torch.randn(*shape).to(self.device, self.dtype)


def _target(device, dtype):
    marks = [pytest.mark.gpu] if device == "cuda" else []
    name = f"{device}-{str(dtype).removeprefix('torch.')}"
    return pytest.param(Target(device=device, dtype=dtype), id=name, marks=marks)


on_each_target = pytest.mark.parametrize(
    "target",
    [
        _target("cpu", torch.float32),
        _target("cpu", torch.float16),
        _target("cuda", torch.float32),
        _target("cuda", torch.float16),
        _target("cuda", torch.bfloat16),
    ],
)
# For grids of many cases, of which the interpreter can only do so many.
on_each_device = pytest.mark.parametrize(
    "target",
    [
        _target("cpu", torch.float32),
        _target("cuda", torch.float32),
        _target("cuda", torch.float16),
        _target("cuda", torch.bfloat16),
    ],
)
in_float32 = pytest.mark.parametrize(
    "target", [_target("cpu", torch.float32), _target("cuda", torch.float32)]
)


needs_hopper = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9,
    reason="needs a Hopper GPU",
)


def worst_row_error(out: torch.Tensor, truth: torch.Tensor) -> float:
    """Returns the largest ||out - truth|| / ||truth|| over the rows; NaN is infinitely wrong."""
    if out.numel() == 0:
        return 0.0
    truth = truth.double().to(out.device)
    errors = (out.double() - truth).norm(dim=-1) / truth.norm(dim=-1).clamp_(min=1e-30)
    return float(errors.nan_to_num_(nan=torch.inf).max())
