"""Solution of exercise 3."""

import torch
from torch import Tensor


def left_padded(prompts: list[list[int]], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns prompts as the rows of a batch, each filled up at its left to the longest one."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts])
    starts = torch.tensor([longest - len(prompt) for prompt in prompts])[:, None]
    columns = torch.arange(longest)
    is_real = columns >= starts  # [rows, longest]
    sees = columns <= columns[:, None]  # [longest, longest]
    mask = sees & is_real[:, None, :] | torch.eye(longest, dtype=torch.bool)
    return tokens, (columns - starts).clamp(min=0), mask
