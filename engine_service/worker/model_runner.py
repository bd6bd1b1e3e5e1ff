"""Runs one step: inputs in, new tokens out, all on the device."""

import torch

from engine_service.layers.ranks import ALONE, Ranks
from engine_service.models.causal_lm import CausalLM
from engine_service.worker.input_batch import InputBatch, SamplingInputs, StepInputs
from engine_service.worker.kv_cache import KVCache
from engine_service.worker.sampler import Sampled, Vocabulary, sample_tokens
from engine_service.worker.slot_sampling import Wants


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
        self._kv_cache = kv_cache
        self._batch = batch
        self._ranks = ranks

    def run(self, inputs: StepInputs, wants: Wants) -> Sampled | None:
        """Runs a step and appends its tokens to their sequences.

        Args:
            inputs: The step.
            wants: What its rows ask of the sampler.

        Returns:
            What the sampler gives, in plan order; None if no row yields a token.
        """
        logits = self.compute_logits(inputs)
        if logits is None or inputs.sampling is None:
            return None
        return self.sample(logits, inputs.sampling, wants)

    def compute_logits(self, inputs: StepInputs) -> torch.Tensor | None:
        """Runs the model over a step's tokens, which go into the cache.

        Returns:
            [num_sampled, tokens that this rank scores] logits of the rows that yield a token; None
            if no row does.
        """
        sampling = inputs.sampling
        no_token = inputs.positions[:0]
        hidden = self._model(
            inputs.input_ids,
            inputs.positions,
            inputs.metadata,
            self._kv_cache.layers,
            no_token if sampling is None else sampling.token_indices,
        )  # [num_sampled, hidden_size]
        return None if sampling is None else self._model.compute_logits(hidden)

    def sample(self, logits: torch.Tensor, sampling: SamplingInputs, wants: Wants) -> Sampled:
        """Draws the tokens and appends them to their sequences."""
        sampled = sample_tokens(logits, sampling, wants, self._vocabulary, self._ranks)
        self._batch.append_sampled(sampling, sampled.token_ids)
        return sampled
