"""Digests of weights that do not depend on how the weights are divided among ranks.

A tensor is seen as a matrix of 32-bit words w, the bits of one float32 or of two 16-bit values side
by side. Its digest is the sum over all words of row_key[r] * column_key[c] * w[r, c] modulo 2^64,
for two independent pairs of keys. The sums of parts add up to the sum of the whole, whatever the
parts are: the keys of a word depend on where it stands in the whole, and if two parts share one,
each has zeros for the other's value. This is a multilinear hash in both directions (Lemire and
Kaser, "Strongly universal string hashing is fast", 2014): for random keys, two different matrices
have equal digests with a probability under 2^-50. The keys are odd, so the change of a single value
always changes the digest.
"""

import json
from collections.abc import Iterable, Sequence

import torch
import xxhash
from torch.nn import functional

from engine_service.models.index_hash import index_hash
from engine_service.models.tensor_file import StoredTensor
from engine_service.models.tensor_part import TensorPart

NUM_SUMS = 2
"""Numbers in the digest of a tensor."""

_ROW_KEYS = (0x243F6A8885A308D3, 0x13198A2E03707344)
_COLUMN_KEYS = (0x299F31D0082EFA98, 0x452821E638D01377)
# Words whose products fit the cache of a CPU or a GPU.
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
    return torch.stack([_sum(*part, row_keys, column_keys) for part in parts]).cpu()


def whole_digest(tensors: Iterable[tuple[str, StoredTensor]], sums: torch.Tensor) -> str:
    """Returns xxh3-128 over names, types, shapes and sums, as 32 hexadecimal digits.

    Args:
        tensors: All tensors and their names, in an order that does not depend on their files.
        sums: [number of tensors, NUM_SUMS] int64 on the CPU, of the whole tensors.
    """
    whole = xxhash.xxh3_128()
    for (name, stored), values in zip(tensors, sums.tolist(), strict=True):
        whole.update(json.dumps([name, stored.dtype, stored.shape, values]).encode())
    return str(whole.hexdigest())


def _sum(
    values: torch.Tensor, part: TensorPart, row_keys: torch.Tensor, column_keys: torch.Tensor
) -> torch.Tensor:
    """Sums up a part.

    Args:
        values: Of the part.
        part: Where it stands.
        row_keys: [rows of the whole or more, NUM_SUMS] int64.
        column_keys: [NUM_SUMS, columns of the whole or more] int64.

    Returns:
        [NUM_SUMS] int64.
    """
    values = values.view(len(part.rows), len(part.columns))
    values_per_word = 4 // values.itemsize
    # Values in front of the part and behind it, in words that it shares with other parts.
    padding = part.columns.start % values_per_word, -part.columns.stop % values_per_word
    first_word = part.columns.start // values_per_word
    num_words = -(-part.columns.stop // values_per_word) - first_word
    row_keys = row_keys[part.rows.start : part.rows.stop]
    column_keys = column_keys[:, first_word : first_word + num_words]
    step = max(1, (_CUDA_CHUNK if values.is_cuda else _CPU_CHUNK) // max(1, num_words))
    total = torch.zeros(NUM_SUMS, dtype=torch.int64, device=values.device)
    for begin in range(0, len(values), step):
        chunk = values[begin : begin + step]
        if any(padding):
            chunk = functional.pad(chunk, padding)
        words = chunk.view(torch.int32)  # [step, num_words]
        row_sums = (words.unsqueeze(1) * column_keys).sum(-1)  # [step, NUM_SUMS]
        total += (row_sums * row_keys[begin : begin + step]).sum(0)
    return total


def _keys(seeds: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """Returns [len(seeds), count] odd int64."""
    indices = torch.arange(count, device=device)
    return torch.stack([index_hash(indices, seed) for seed in seeds]).bitwise_or_(1)
