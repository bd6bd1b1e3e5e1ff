"""What a safetensors file says of its tensors. Needs no torch.

Format: 8 bytes little-endian length of a JSON header, the header, the tensors' bytes.
https://github.com/huggingface/safetensors#format
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from engine_service.errors import StartupError

_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file."""

    dtype: str
    """As the format names it, such as "BF16"."""
    shape: list[int]
    begin: int
    """Offset of its first byte in the file."""
    end: int
    """Offset behind its last byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """A safetensors file.

    Attributes:
        path: Where it is.
        header: The JSON header as it stands.
        tensors: Its tensors by name, in the order of their bytes.
    """

    path: Path
    header: bytes
    tensors: dict[str, StoredTensor]


def read_tensor_file(path: Path) -> TensorFile:
    """Reads the header of a safetensors file.

    Raises:
        StartupError: The file cannot be read or is not whole.
    """
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(header_bytes, _MAX_HEADER_BYTES))
        start = 8 + header_bytes
        tensors = {
            name: StoredTensor(
                dtype=entry["dtype"],
                shape=list(entry["shape"]),
                begin=start + entry["data_offsets"][0],
                end=start + entry["data_offsets"][1],
            )
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        }
        size = path.stat().st_size
        if max((tensor.end for tensor in tensors.values()), default=start) != size:
            raise ValueError("its size is not what the header says")
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StartupError(
            f"{path}: is not a whole safetensors file; fetch it again ({error})"
        ) from error
    ordered = sorted(tensors.items(), key=lambda item: item[1].begin)
    return TensorFile(path=path, header=header, tensors=dict(ordered))
