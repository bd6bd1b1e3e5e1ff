"""Dtypes and their names in files, configurations and torch. Needs no torch.

This is the only table of dtypes here. `config.py` lists the choices of `--dtype`, which a test
compares with it. The kernels keep their own list, as they import nothing of ours.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DType:
    """One type."""

    stored_name: str
    """Its name in safetensors headers."""
    num_bits: int
    """Bits per element."""
    name: str | None = None
    """Its name in config.json and torch; None for types whose tensors are not read."""

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The torch dtype; only for types that are read."""
        # The server process uses this table too, and has no torch.
        import torch

        assert self.name is not None, f"{self.stored_name} is not read"
        dtype = getattr(torch, self.name)
        assert isinstance(dtype, torch.dtype)
        return dtype


_TYPES = (
    DType(stored_name="BF16", num_bits=16, name="bfloat16"),
    DType(stored_name="F16", num_bits=16, name="float16"),
    DType(stored_name="F32", num_bits=32, name="float32"),
    DType(stored_name="F4", num_bits=4),
    DType(stored_name="F6_E2M3", num_bits=6),
    DType(stored_name="F6_E3M2", num_bits=6),
    DType(stored_name="F8_E5M2", num_bits=8),
    DType(stored_name="F8_E4M3", num_bits=8),
    DType(stored_name="F8_E8M0", num_bits=8),
    DType(stored_name="F8_E4M3FNUZ", num_bits=8),
    DType(stored_name="F8_E5M2FNUZ", num_bits=8),
    DType(stored_name="F64", num_bits=64),
    DType(stored_name="C64", num_bits=64),
    DType(stored_name="BOOL", num_bits=8),
    DType(stored_name="U8", num_bits=8),
    DType(stored_name="I8", num_bits=8),
    DType(stored_name="U16", num_bits=16),
    DType(stored_name="I16", num_bits=16),
    DType(stored_name="U32", num_bits=32),
    DType(stored_name="I32", num_bits=32),
    DType(stored_name="U64", num_bits=64),
    DType(stored_name="I64", num_bits=64),
)

STORED = {dtype.stored_name: dtype for dtype in _TYPES}
"""All types that a safetensors header may name, by that name."""

READABLE = {dtype.name: dtype for dtype in _TYPES if dtype.name is not None}
"""The types in which weights may be stored and a model may run, by torch's name."""
