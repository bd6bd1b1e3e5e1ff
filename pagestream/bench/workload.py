"""The requests of a load, each made when it is sent."""

import random
from dataclasses import dataclass

from pagestream.bench.options import Lengths, WorkloadOptions

_SEEDS = 1 << 32


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        prompt: Each byte is a token's ID: every vocabulary has 256.
    """

    prompt: bytes
    max_tokens: int
    seed: int


class Workload:
    """Makes requests; the same options make the same ones, in whatever order they are asked for."""

    def __init__(self, options: WorkloadOptions) -> None:
        self._options = options

    def request(self, number: int) -> Request:
        """Returns a request, numbered from 0."""
        options = self._options
        rng = random.Random(f"{options.seed} request {number}")
        num_tokens = _draw(rng, options.prompt_tokens)
        max_tokens = _draw(rng, options.output_tokens)
        prefix = rng.randrange(options.prefixes)
        seed = rng.randrange(_SEEDS)
        num_shared = round(num_tokens * options.prefix_share)
        shared = random.Random(f"{options.seed} prefix {prefix}")
        return Request(
            _tokens(shared, num_shared) + _tokens(rng, num_tokens - num_shared), max_tokens, seed
        )


def _draw(rng: random.Random, lengths: Lengths) -> int:
    return rng.randint(lengths.low, lengths.high)


def _tokens(rng: random.Random, count: int) -> bytes:
    # In whole words, so that a shorter beginning is a part of a longer one.
    return rng.randbytes(-(-count // 4) * 4)[:count]
