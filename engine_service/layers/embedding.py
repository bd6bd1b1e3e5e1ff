"""The embedding matrix, used as the first and the last layer of a model."""

import torch
from torch import nn
from torch.nn import functional


class Embedding(nn.Module):
    """One row per token of the vocabulary."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(vocab_size, hidden_size, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Looks up [num_tokens] integers as [num_tokens, hidden_size]."""
        return functional.embedding(input_ids, self.weight)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores [num_tokens, hidden_size] against each row as [num_tokens, vocab_size]."""
        return functional.linear(hidden, self.weight)
