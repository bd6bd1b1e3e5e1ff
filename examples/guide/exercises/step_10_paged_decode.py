"""Exercise 10: one attention from two parts of the keys.

The parts may be a prefix that texts share and the rest of each, or any two splits. Of each part
there are the attention to it alone, and the logarithm of its weight: log(e^s1 + e^s2 + ...) over
its scores. Merging gives the same two of both parts together, so that merging can go on.
"""

from torch import Tensor

Part = tuple[Tensor, Tensor]
"""Attention to some of the keys [..., head size], and the logarithm of their weight [...]. Where
there are no keys, the logarithm is minus infinity, and the attention is 0.
"""


def merge(first: Part, second: Part) -> Part:
    """Returns the part of all keys of both; scores may be in the thousands, or far below 0."""
    raise NotImplementedError
