"""Samples tokens from logits."""

import torch

from engine_service.worker.input_batch import SamplingInputs
from kernels.sample import sample


def sample_tokens(logits: torch.Tensor, sampling: SamplingInputs) -> torch.Tensor:
    """Draws the next token of each row.

    A draw depends on the row's logits, temperature, seed and position alone, never on the batch.

    Args:
        logits: [num_sampled, vocab_size].
        sampling: How to draw in each row.

    Returns:
        [num_sampled] int64 token IDs, -1 where the logits are not a distribution.
    """
    return sample(logits, sampling.temperatures, sampling.seeds, sampling.positions)
