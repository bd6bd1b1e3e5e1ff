"""The embedding matrix, used as the first and the last layer of a model."""

import torch
from torch import nn

from engine_service.layers.ranks import ALONE, Ranks
from engine_service.layers.weight_slot import Shard, WeightSlot
from kernels.linear import linear
from kernels.tile_shares import make_counters


class Embedding(nn.Module):
    """One row per token of this rank's part of the vocabulary.

    Attributes:
        token_ids: That part.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        self.token_ids = ranks.vocab_range(vocab_size)
        self._vocab_size = vocab_size
        self._ranks = ranks
        weight = torch.empty(len(self.token_ids), hidden_size, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        # Of this weight alone: another model in this process may run at the same time.
        self._counters = make_counters()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Looks up [num_tokens] integers as [num_tokens, hidden_size]."""
        if self._ranks.size == 1:
            # Faster than an embedding, which takes a slow way for up to 16 rows. Kernels that read
            # lengths and places early rely on it: it starts when all in front of it has ended.
            return self.weight[input_ids]
        rows = input_ids - self.token_ids.start
        is_elsewhere = (rows < 0) | (rows >= len(self.token_ids))
        found = self.weight[rows.masked_fill(is_elsewhere, 0)]
        return self._ranks.all_reduce(found.masked_fill_(is_elsewhere[:, None], 0))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores [num_tokens, hidden_size] against each row: [num_tokens, len(token_ids)]."""
        return linear(hidden, self.weight, counters=self._counters)

    def slot(self, name: str) -> WeightSlot:
        """Returns the slot of the stored matrix."""
        shard = None
        if self._ranks.size > 1:
            shard = Shard(dim=0, begin=self.token_ids.start, full_size=self._vocab_size)
        return WeightSlot(name=name, parameter=self.weight, shard=shard)
