"""The offline workloads that peers are measured with: the same token IDs for every engine.

Each returns prompts, a list of token ID lists, and the tokens to generate for each; ends of
sequence are ignored, the temperature is 0.6, and all requests are submitted at once.
"""

from collections.abc import Callable, Mapping
from random import Random

Workload = tuple[list[list[int]], list[int]]

TEMPERATURE = 0.6


def nano_bench() -> Workload:
    """256 requests of 100 to 1,024 tokens in and out, as nano-vllm's bench.py draws them."""
    rng = Random(0)
    prompts = [[rng.randint(0, 10000) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
    return prompts, [rng.randint(100, 1024) for _ in range(256)]


def uniform(num_requests: int, prompt_len: int, output_len: int, seed: int = 1) -> Workload:
    """Requests of equal lengths and random tokens."""
    rng = Random(seed)
    prompts = [[rng.randint(0, 10000) for _ in range(prompt_len)] for _ in range(num_requests)]
    return prompts, [output_len] * num_requests


def shared_prefix(num_requests: int, shared_len: int, own_len: int, output_len: int) -> Workload:
    """Requests that begin with the same tokens."""
    rng = Random(7)
    shared = [rng.randint(0, 10000) for _ in range(shared_len)]
    own = [[rng.randint(0, 10000) for _ in range(own_len)] for _ in range(num_requests)]
    return [shared + rest for rest in own], [output_len] * num_requests


WORKLOADS: Mapping[str, Callable[[], Workload]] = {
    "nano_bench": nano_bench,
    "decode_b1": lambda: uniform(1, 128, 512),
    "decode_b8": lambda: uniform(8, 128, 256, seed=5),
    "decode_b16": lambda: uniform(16, 512, 256, seed=6),
    "decode_b64": lambda: uniform(64, 1024, 256),
    "shared_prefix": lambda: shared_prefix(256, 2048, 64, 64),
    "prefill": lambda: uniform(64, 4088, 1),
}
"""By name; `prefill` is measured in input tokens, the others in output tokens."""

QUICK_WORKLOADS: Mapping[str, Callable[[], Workload]] = {
    "nano_bench": lambda: uniform(3, 20, 8),
    "decode_b1": lambda: uniform(1, 8, 8),
    "decode_b8": lambda: uniform(2, 8, 8),
    "decode_b16": lambda: uniform(3, 8, 8),
    "decode_b64": lambda: uniform(4, 16, 8),
    "shared_prefix": lambda: shared_prefix(3, 32, 8, 8),
    "prefill": lambda: uniform(2, 40, 1),
}
"""Small ones in their place, to try a benchmark; their figures say nothing."""
