"""Solution of exercise 12."""

import torch
from torch import Tensor


def best_of_part(logits: Tensor, first_token: int) -> Tensor:
    """Returns what a rank tells the others: the highest logit and its token."""
    best = int(logits.argmax())  # The first one, if several are equal.
    return torch.tensor([float(logits[best]), first_token + best], dtype=torch.float64)


def best_of_all(bests: list[Tensor]) -> int:
    """Returns the ID of the best token, from what all ranks told, in any order."""
    _, token_id = max((best.tolist() for best in bests), key=lambda best: (best[0], -best[1]))
    return int(token_id)
