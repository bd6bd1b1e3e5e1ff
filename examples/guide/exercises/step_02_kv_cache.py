"""Exercise 2: how long may a text be?

A GPU has so much memory. The weights take some of it once; the rest holds keys and values.
"""

from examples.guide.step_01_forward import Model


def max_tokens(model: Model, memory_bytes: int, bytes_per_number: int) -> int:
    """Returns how many tokens fit into a cache beside the weights; 0 if not even those fit.

    Args:
        model: Weights and cache alike hold numbers of `bytes_per_number`.
        memory_bytes: All that the GPU has.
        bytes_per_number: 2 for bfloat16, 4 for float32.
    """
    raise NotImplementedError
