"""Samples tokens from logits."""

import torch

from engine_service.worker.input_batch import SamplingInputs
from kernels.sample import sample
from protos.wire.sampling_params import RECORD_COLUMNS


def sample_tokens(logits: torch.Tensor, sampling: SamplingInputs) -> torch.Tensor:
    """Draws the next token of each row.

    A draw depends on the row's logits, sampling parameters, seed and position alone, never on the
    batch.

    Args:
        logits: [num_sampled, vocab_size].
        sampling: How to draw in each row.

    Returns:
        [num_sampled] int64 token IDs, -1 where the logits are not a distribution.
    """
    return sample(logits, sampling.records, sampling.slots, sampling.positions, RECORD_COLUMNS)
