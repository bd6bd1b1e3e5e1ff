"""Runs one step: inputs in, new tokens out, all on the device."""

import copy
from collections.abc import Callable, Sequence
from typing import Self

import torch

from engine_service.layers.ranks import ALONE, Ranks
from engine_service.models.causal_lm import CausalLM
from engine_service.worker.input_batch import (
    InputBatch,
    SamplingInputs,
    ScoringInputs,
    StepInputs,
)
from engine_service.worker.kv_cache import KVCache
from engine_service.worker.sampler import Logprobs, Sampled, Vocabulary, sample_tokens
from engine_service.worker.slot_sampling import Wants
from kernels.logprobs import token_logprobs

_SCORED_AT_ONCE = 64
"""Tokens of prompts whose logits are in memory together."""


class ModelRunner:
    """A model, its cache and the state of its sequences. No method waits for the device."""

    def __init__(
        self,
        model: CausalLM,
        kv_cache: KVCache,
        batch: InputBatch,
        ranks: Ranks = ALONE,
    ) -> None:
        self._model = model
        self._vocabulary = Vocabulary(batch.vocab_size, model.token_ids)
        self._kv_caches: Sequence[torch.Tensor | None] = kv_cache.layers
        self._batch = batch
        self._ranks = ranks

    def shortened(self) -> Self:
        """Returns a runner that leaves out layers which only repeat what others do.

        Its tokens mean nothing. But after a step, all kernels of the whole step are compiled and
        loaded, in a fraction of its time. It may take less memory than the whole step.
        """
        runner = copy.copy(self)
        distinct = self._model.distinct_layers
        runner._kv_caches = [
            kv_cache if layer in distinct else None
            for layer, kv_cache in enumerate(self._kv_caches)
        ]
        return runner

    def run(
        self,
        inputs: StepInputs,
        wants: Wants,
        before_draw: Callable[[], object] | None = None,
    ) -> Sampled | None:
        """Runs a step and appends its tokens to their sequences.

        Args:
            inputs: The step.
            wants: What its rows ask of the sampler.
            before_draw: Called when the logits are enqueued.

        Returns:
            What the sampler gives, in plan order; None if no row yields a token.
        """
        logits = self.compute_logits(inputs)
        if logits is None or inputs.sampling is None:
            return None
        if before_draw is not None:
            before_draw()
        return self.sample(logits, inputs.sampling, wants)

    def score(
        self,
        inputs: StepInputs,
        wants: Wants,
        scoring: ScoringInputs,
        before_draw: Callable[[], object] | None = None,
    ) -> tuple[Sampled | None, Logprobs]:
        """As `run`, and also computes logprobs of tokens of prompts, [num_scored] of them."""
        sampling = inputs.sampling
        wanted = [scoring.token_indices]
        if sampling is not None:
            last = sampling.token_indices
            wanted.append(torch.arange(len(inputs.positions)) if last is None else last)
        hidden = self._forward(inputs, torch.cat([part.to(wanted[0]) for part in wanted]))
        num_scored = len(scoring.token_ids)
        parts = [
            token_logprobs(
                self._ranks.gather_vocab(self._model.compute_logits(rows), self._vocabulary.size),
                token_ids,
                scoring.num_top,
            )
            for rows, token_ids in zip(
                torch.split(hidden[:num_scored], _SCORED_AT_ONCE),
                torch.split(scoring.token_ids, _SCORED_AT_ONCE),
                strict=True,
            )
        ]
        logprobs = Logprobs(*map(torch.cat, zip(*parts, strict=True)))
        if sampling is None:
            return None, logprobs
        logits = self._model.compute_logits(hidden[num_scored:])
        if before_draw is not None:
            before_draw()
        return self.sample(logits, sampling, wants), logprobs

    def compute_logits(self, inputs: StepInputs) -> torch.Tensor | None:
        """Runs the model over a step's tokens, which go into the cache.

        Returns:
            [num_sampled, tokens that this rank scores] logits of the rows that yield a token; None
            if no row does.
        """
        sampling = inputs.sampling
        no_token = inputs.positions[:0]
        hidden = self._forward(inputs, no_token if sampling is None else sampling.token_indices)
        return None if sampling is None else self._model.compute_logits(hidden)

    def _forward(self, inputs: StepInputs, token_indices: torch.Tensor | None) -> torch.Tensor:
        """Returns the last hidden states of some tokens of a step, [num_tokens, hidden_size]."""
        return self._model(
            inputs.input_ids,
            inputs.positions,
            inputs.metadata,
            self._kv_caches,
            token_indices,
        )

    def sample(self, logits: torch.Tensor, sampling: SamplingInputs, wants: Wants) -> Sampled:
        """Draws the tokens and appends them to their sequences."""
        sampled = sample_tokens(logits, sampling, wants, self._vocabulary, self._ranks)
        self._batch.append_sampled(sampling, sampled.token_ids)
        return sampled
