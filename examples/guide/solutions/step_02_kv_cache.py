"""Solution of exercise 2."""

from examples.guide.step_01_forward import Model
from examples.guide.step_02_kv_cache import bytes_per_token


def max_tokens(model: Model, memory_bytes: int, bytes_per_number: int) -> int:
    """Returns how many tokens fit into a cache beside the weights; 0 if not even those fit."""
    weights = sum(weight.numel() for weight in model.weights.values()) * bytes_per_number
    return max(0, memory_bytes - weights) // bytes_per_token(model, bytes_per_number)
