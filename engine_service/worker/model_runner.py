"""Runs one step: inputs in, new tokens out, all on the device."""

import torch

from engine_service.layers.ranks import ALONE, Ranks
from engine_service.models.causal_lm import CausalLM
from engine_service.worker.input_batch import InputBatch, SamplingInputs, StepInputs
from engine_service.worker.kv_cache import KVCache
from engine_service.worker.sampler import sample_tokens


class ModelRunner:
    """A model, its cache and the state of its sequences. No method waits for the device."""

    def __init__(
        self, model: CausalLM, kv_cache: KVCache, batch: InputBatch, ranks: Ranks = ALONE
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._batch = batch
        self._ranks = ranks

    def run(self, inputs: StepInputs) -> torch.Tensor | None:
        """Runs a step and appends its tokens to their sequences.

        Returns:
            [num_sampled] int64 token IDs, in plan order, -1 where the logits give none; None if no
            row yields one.
        """
        logits = self.compute_logits(inputs)
        if logits is None or inputs.sampling is None:
            return None
        return self.sample(logits, inputs.sampling)

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

    def sample(self, logits: torch.Tensor, sampling: SamplingInputs) -> torch.Tensor:
        """Draws the tokens, [num_sampled] int64, and appends them to their sequences."""
        token_ids = sample_tokens(logits, sampling, self._model.token_ids.start, self._ranks)
        self._batch.append_sampled(sampling, token_ids)
        return token_ids
