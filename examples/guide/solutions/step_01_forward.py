"""Solution of exercise 1."""

import torch
from torch import Tensor


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Returns what `attention` of step 1 returns, from the same arguments."""
    grouped = queries.unflatten(1, (keys.shape[1], -1))  # [queries, KV heads, group, head size]
    scores = torch.einsum("qhgd,khd->hgqk", grouped, keys) / queries.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hgqk,khd->qhgd", weights, values).flatten(1, 2)
