"""Exercise 9: attention with a sliding window.

Each token sees itself and the `window - 1` tokens before it, and no others. Far from the beginning,
most tiles are then seen by nobody, and must not be computed. Beware of a row whose first computed
tile holds nothing that it sees: minus infinity minus minus infinity is not a number.
"""

from torch import Tensor


def window_attention(
    queries: Tensor, keys: Tensor, values: Tensor, window: int, tile: int
) -> Tensor:
    """Returns each token's attention to the last `window` tokens up to itself.

    Args:
        queries: [heads, new tokens, head size], of the last of all tokens.
        keys: [heads, all tokens, head size]. Those of tiles that nobody sees may be NaN.
        values: As the keys.
        window: How many tokens each token sees at most; 1 or more.
        tile: Tokens of a tile of queries or keys. Tile i of the keys begins at token i * tile. At
            no time are there scores of more than one tile.

    Returns:
        [heads, new tokens, head size]. The scores are divided by the square root of the head size.
    """
    raise NotImplementedError
