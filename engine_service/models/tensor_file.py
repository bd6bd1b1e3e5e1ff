"""Reads the header of a safetensors file. Needs no torch.

Format: 8 bytes little-endian length of a JSON header, the header, the tensors' bytes.
https://github.com/huggingface/safetensors#format
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from engine_service.errors import StartupError
from engine_service.models.dtypes import STORED
from engine_service.models.json_file import parse_json, shown
from engine_service.models.plain_file import cannot_read, open_plain_file

_MAX_HEADER_BYTES = 16 << 20
"""About 100,000 tensors. The format allows 100 MB, which may become gigabytes of objects."""

_MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file."""

    path: Path
    name: str
    dtype: str
    """Its name in the format, such as "BF16"."""
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file."""
    end: int
    """Offset just past its last byte."""

    def __str__(self) -> str:
        """Returns its name for messages."""
        return f"{self.path}: tensor {shown(self.name)[1:-1]}"


def read_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """Reads the header of a safetensors file and checks every requirement of the format.

    Returns:
        The tensors by name, in the order of their bytes.

    Raises:
        StartupError: The file cannot be read or is incomplete.
    """
    try:
        with open(open_plain_file(path), "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes < 8:
                raise ValueError(f"it has only {num_bytes} bytes")
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > num_bytes - 8:
                raise ValueError("its header ends after the end of the file")
            if header_bytes > _MAX_HEADER_BYTES:
                raise ValueError(
                    f"its header has {header_bytes} bytes, over the limit of {_MAX_HEADER_BYTES}"
                )
            header = file.read(header_bytes)
        return _tensors(path, header, 8 + header_bytes, num_bytes)
    except OSError as error:
        raise cannot_read(path, error) from error
    except (struct.error, ValueError) as error:
        raise StartupError(
            f"{path}: is not a complete safetensors file; download it again ({error})"
        ) from error


def _tensors(path: Path, header: bytes, start: int, num_bytes: int) -> dict[str, StoredTensor]:
    entries = parse_json(header)
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = start
    for tensor in tensors:
        if tensor.begin != end:
            raise ValueError(
                f"tensor {shown(tensor.name)} begins at byte {tensor.begin - start} of the data, "
                f"but the tensors before it end at byte {end - start}"
            )
        end = tensor.end
    if end != num_bytes:
        raise ValueError(f"its tensors end at byte {end}, but the file ends at byte {num_bytes}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: object, start: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in STORED:
        raise ValueError(f"tensor {shown(name)} has the unknown dtype {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"tensor {shown(name)} has the invalid shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)} has the invalid data_offsets {shown(offsets)}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * STORED[dtype].num_bits:
        raise ValueError(
            f"tensor {shown(name)} has {end - begin} bytes, which does not fit its shape "
            f"{shown(shape)} in {dtype}"
        )
    return StoredTensor(
        path=path,
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        begin=start + begin,
        end=start + end,
    )


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in value
    )
