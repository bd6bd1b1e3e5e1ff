"""Samples tokens from logits."""

import torch

from engine_service.layers.ranks import Ranks
from engine_service.worker.input_batch import SamplingInputs
from kernels.sample import sample, sample_keys
from kernels.sampling_reference import tokens_of_keys
from protos.wire.sampling_params import RECORD_COLUMNS


def sample_tokens(
    logits: torch.Tensor, sampling: SamplingInputs, first_id: int, ranks: Ranks
) -> torch.Tensor:
    """Draws the next token of each row; all ranks get the same ones.

    Ranks that each score a part of the vocabulary exchange one number per row, not the logits.

    A draw depends on the row's logits, sampling parameters, seed and position alone, never on the
    batch.

    Args:
        logits: [num_sampled, tokens of this rank's part of the vocabulary].
        sampling: How to draw in each row.
        first_id: The first token of the part.
        ranks: The ranks.

    Returns:
        [num_sampled] int64 token IDs, -1 where the logits are not a distribution.
    """
    given = logits, sampling.records, sampling.slots, sampling.positions, RECORD_COLUMNS
    if ranks.size == 1:
        return sample(*given)
    return tokens_of_keys(ranks.maximum(sample_keys(*given, first_id)))
