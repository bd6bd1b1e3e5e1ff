"""Rotary position embedding: the table of angles (Su et al., RoFormer, section 3.4)."""

import torch


def rotary_table(head_dim: int, max_position: int, theta: float) -> torch.Tensor:
    """Returns a table of the rotation of each position.

    Returns:
        [max_position, head_dim] float32 on the current default device: in each row the cosines of
        the head_dim / 2 angles, then their sines.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse_frequencies = 1.0 / theta**exponents  # [head_dim / 2]
    positions = torch.arange(max_position, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies)  # [max_position, head_dim / 2]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
