"""Exercise 1: the same attention, in which no key or value is repeated.

`attention` of step 1 repeats keys and values for each query head of their group. That moves memory
for nothing. Write it so that no key or value is copied: give the queries a dimension for the group.
"""

from torch import Tensor


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Returns what `attention` of step 1 returns, from the same arguments."""
    raise NotImplementedError
