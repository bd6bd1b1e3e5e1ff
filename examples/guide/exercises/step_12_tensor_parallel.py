"""Exercise 12: choose a token without ever having all of its scores.

`side_by_side` of step 12 gives each rank the logits of the whole vocabulary. To find the best one,
that is far too much: each rank can tell the others its own best token, and that token's logit.
"""

from torch import Tensor


def best_of_part(logits: Tensor, first_token: int) -> Tensor:
    """Returns what a rank tells the others: 2 numbers, the highest logit and the ID of its token.

    Of equal logits, that of the lowest ID counts.

    Args:
        logits: [tokens of this rank's part], float32.
        first_token: The ID that the first of them has in the whole vocabulary, where IDs are below
            2**31. The result's type must hold each of them exactly (float32 does not).
    """
    raise NotImplementedError


def best_of_all(bests: list[Tensor]) -> int:
    """Returns the ID of the best token, from what all ranks told, in any order.

    Of equal logits, that of the lowest ID counts, so that all ranks choose the same token, and the
    same one as a model that is not divided.
    """
    raise NotImplementedError
