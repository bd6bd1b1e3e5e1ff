"""Exercise 3: fill rows up on the other side.

Many programs put the padding before a prompt instead of behind it, so that all rows end at the same
place, and a new token has the same column in each row. Then padding stands *before* real tokens,
and no order of positions hides it: the mask must.
"""

from torch import Tensor


def left_padded(prompts: list[list[int]], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns prompts as the rows of a batch, each filled up at its left to the longest one.

    Args:
        prompts: The tokens of each, at least one.
        padding: The token to fill up with.

    Returns:
        [rows, longest]: the tokens.
        [rows, longest]: the position of each token in its own prompt, from 0; 0 for padding.
        [rows, longest, longest] of booleans: whether the token of the first column may look at that
            of the second. A real token sees the real tokens of its row up to itself. Padding sees
            itself and nothing else: softmax over nothing at all would give NaN.
    """
    raise NotImplementedError
