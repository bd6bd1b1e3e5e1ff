"""Exercise 8: a draw from a vocabulary in parts.

With several GPUs (step 12), each has the logits of a part of the vocabulary. Let each find the best
token of its part, so that they need not send all logits to one place, but only one number and one
token each.
"""

from torch import Tensor

from examples.guide.step_08_sampling import Sampling


def best_of_part(
    logits: Tensor, first_token: int, sampling: Sampling, position: int
) -> tuple[float, int]:
    """Returns the best score of a part, with its noise, and the token that has it.

    Args:
        logits: [tokens of the part].
        first_token: The token of the first of them.
        sampling: With any temperature, also 0, but neither top-k nor top-p: these need to see all.
        position: Of the token drawn.
    """
    raise NotImplementedError


def winner(parts: list[tuple[float, int]]) -> int:
    """Returns the token that `draw` of step 8 draws from all logits; parts come in any order.

    Of equal scores, as two logits of a greedy request may be, the smaller token wins.
    """
    raise NotImplementedError
