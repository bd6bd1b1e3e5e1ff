"""The interface of a model for loading, runner and worker."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from engine_service.layers.attention import AttentionMetadata
from engine_service.layers.weight_slot import WeightSlot


class CausalLM(Protocol):
    """A model that continues token sequences, whatever its layers are.

    A call must enqueue the same kernels for the same sizes and must not wait, because steps are
    captured as CUDA graphs.
    """

    def __call__(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[torch.Tensor | None],
        output_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the last hidden states of tokens.

        Args:
            input_ids: [num_tokens] int32.
            positions: [num_tokens] int64, position of each token in its sequence.
            metadata: Where the tokens stand in the cache.
            kv_caches: Per layer [2, num_blocks, num_kv_heads, block_size, head_dim], written in
                place. None leaves a layer out, but not the last; the states then mean nothing.
            output_indices: [num_outputs] int64, the tokens whose states are wanted; None for all.

        Returns:
            [num_outputs, hidden_size].
        """
        ...

    @property
    def distinct_layers(self) -> Sequence[int]:
        """The layers that together enqueue every kind of kernel of a step, for the same sizes."""
        ...

    @property
    def token_ids(self) -> range:
        """The token IDs that this rank scores."""
        ...

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores tokens: [num_tokens, hidden_size] to [num_tokens, len(token_ids)]."""
        ...

    def weight_slots(self) -> Iterator[WeightSlot]:
        """Yields the slot of each checkpoint tensor; together they cover all parameters.

        A tied model yields its embedding and no head.
        """
        ...


def distinct_layers(windows: Sequence[int]) -> tuple[int, ...]:
    """Returns the first layer with each window, and the last, which may run on fewer tokens."""
    firsts = {window: layer for layer, window in reversed([*enumerate(windows)])}
    return tuple(sorted({*firsts.values(), len(windows) - 1}))
