"""Digests of weights that do not depend on how the weights are divided among ranks.

A tensor is seen as a matrix of integers w, the bits of its values. Its digest is the sum over all
entries of row_key[r] * column_key[c] * w[r, c] modulo 2^64, for two independent pairs of keys. The
sums of parts add up to the sum of the whole, whatever the parts are, and the keys of a part depend
on where it stands in the whole. This is a multilinear hash in both directions (Lemire and Kaser,
"Strongly universal string hashing is fast", 2014): two different matrices have equal digests with
a probability under 2^-50. The keys are odd, so the change of a single value always changes it.
"""

import json
from collections.abc import Iterable, Sequence

import torch
import xxhash

from engine_service.models.index_hash import index_hash
from engine_service.models.tensor_file import StoredTensor
from engine_service.models.tensor_part import TensorPart

NUM_SUMS = 2
"""Numbers in the digest of a tensor."""

_ROW_KEYS = (0x243F6A8885A308D3, 0x13198A2E03707344)
_COLUMN_KEYS = (0x299F31D0082EFA98, 0x452821E638D01377)
# The products of a chunk should fit a CPU core's or a GPU's cache.
_CPU_CHUNK, _CUDA_CHUNK = 1 << 18, 1 << 21


@torch.inference_mode()
def part_sums(parts: Sequence[tuple[torch.Tensor, TensorPart]]) -> torch.Tensor:
    """Sums up parts of tensors.

    Args:
        parts: The values of each part, contiguous and all on one device, and where they stand.

    Returns:
        [len(parts), NUM_SUMS] int64 on the CPU. The rows of parts which together are one tensor
        add up (modulo 2^64, as int64 does) to that tensor's digest.
    """
    if not parts:
        return torch.zeros(0, NUM_SUMS, dtype=torch.int64)
    device = parts[0][0].device
    row_keys = _keys(_ROW_KEYS, max(part.rows.stop for _, part in parts), device).T
    column_keys = _keys(_COLUMN_KEYS, max(part.columns.stop for _, part in parts), device)
    # Fetched at once, so there is only one wait for a GPU.
    return torch.stack(
        [
            _sum(
                values.view(torch.int16 if values.itemsize == 2 else torch.int32).view(
                    len(part.rows), len(part.columns)
                ),
                row_keys[part.rows.start : part.rows.stop],
                column_keys[:, part.columns.start : part.columns.stop],
            )
            for values, part in parts
        ]
    ).cpu()


def whole_digest(tensors: Iterable[StoredTensor], sums: torch.Tensor) -> str:
    """Returns xxh3-128 over names, types, shapes and sums, as 32 hexadecimal digits.

    Args:
        tensors: All tensors, in an order that does not depend on their files.
        sums: [number of tensors, NUM_SUMS] int64 on the CPU, of the whole tensors.
    """
    whole = xxhash.xxh3_128()
    for stored, values in zip(tensors, sums.tolist(), strict=True):
        whole.update(json.dumps([stored.name, stored.dtype, stored.shape, values]).encode())
    return str(whole.hexdigest())


def _sum(words: torch.Tensor, row_keys: torch.Tensor, column_keys: torch.Tensor) -> torch.Tensor:
    """Sums up a matrix.

    Args:
        words: [num_rows, num_columns] integers.
        row_keys: [num_rows, NUM_SUMS] int64.
        column_keys: [NUM_SUMS, num_columns] int64.

    Returns:
        [NUM_SUMS] int64.
    """
    num_rows, num_columns = words.shape
    chunk_size = _CUDA_CHUNK if words.is_cuda else _CPU_CHUNK
    step = max(1, chunk_size // max(1, num_columns))
    total = torch.zeros(NUM_SUMS, dtype=torch.int64, device=words.device)
    for begin in range(0, num_rows, step):
        chunk = words[begin : begin + step]
        row_sums = (chunk.unsqueeze(1) * column_keys).sum(-1)  # [step, NUM_SUMS]
        total += (row_sums * row_keys[begin : begin + step]).sum(0)
    return total


def _keys(seeds: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """Returns [len(seeds), count] odd int64."""
    indices = torch.arange(count, device=device)
    return torch.stack([index_hash(indices, seed) for seed in seeds]).bitwise_or_(1)
