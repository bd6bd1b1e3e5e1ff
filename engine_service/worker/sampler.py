"""Samples tokens from logits."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from engine_service.layers.ranks import Ranks
from engine_service.worker.input_batch import SamplingInputs
from engine_service.worker.slot_sampling import NOTHING, Wants
from kernels.logprobs import token_logprobs
from kernels.sample import sample, sample_keys
from kernels.sampling_reference import tokens_of_keys
from kernels.sampling_thresholds import sampling_thresholds
from kernels.shape_logits import shape_logits
from protos.wire.sampling_params import RECORD_COLUMNS


class Logprobs(NamedTuple):
    """Logprobs of the tokens of some rows, by the logits of the model."""

    of_tokens: torch.Tensor
    """[num_rows] float32."""
    top_token_ids: torch.Tensor
    """[num_rows, num_top] int32, the likeliest first."""
    of_top: torch.Tensor
    """[num_rows, num_top] float32."""


class Sampled(NamedTuple):
    """What the sampler gives for the rows that yield a token."""

    token_ids: torch.Tensor
    """[num_rows] int64, -1 where the logits are not a distribution."""
    logprobs: Logprobs | None = None
    """None if no row asks for them."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Sampled":
        """Returns the same with all tensors changed."""
        if self.logprobs is None:
            return Sampled(change(self.token_ids))
        return Sampled(change(self.token_ids), Logprobs(*map(change, self.logprobs)))


class Vocabulary(NamedTuple):
    """The tokens that the model knows, and those that this rank scores."""

    size: int
    part: range


def sample_tokens(
    logits: torch.Tensor,
    sampling: SamplingInputs,
    wants: Wants,
    vocabulary: Vocabulary,
    ranks: Ranks,
) -> Sampled:
    """Draws the next token of each row; all ranks get the same ones.

    A draw depends on the row's logits, sampling parameters, seed and position alone, never on the
    batch. Ranks that each score a part of the vocabulary exchange one number per row, or all logits
    if a row asks for more than a temperature.

    Args:
        logits: [num_sampled, tokens of this rank's part of the vocabulary].
        sampling: How to draw in each row.
        wants: What any of the rows asks for; more is allowed.
        vocabulary: The vocabulary.
        ranks: The ranks.
    """
    given = sampling.records, sampling.slots, sampling.positions, RECORD_COLUMNS
    if wants == NOTHING:
        if ranks.size == 1:
            return Sampled(sample(logits, *given))
        keys = sample_keys(logits, *given, vocabulary.part.start)
        return Sampled(tokens_of_keys(ranks.maximum(keys)))
    logits = ranks.gather_vocab(logits, vocabulary.size)
    scores, thresholds = logits, None
    if wants.edits:
        scores = shape_logits(
            logits,
            sampling.tokens,
            sampling.records,
            sampling.slots,
            sampling.positions,
            sampling.edits,
            RECORD_COLUMNS,
        )
    if wants.thresholds:
        thresholds = sampling_thresholds(scores, sampling.records, sampling.slots, RECORD_COLUMNS)
    token_ids = sample(scores, *given, thresholds)
    if wants.num_top is None:
        return Sampled(token_ids)
    return Sampled(token_ids, Logprobs(*token_logprobs(logits, token_ids, wants.num_top)))
