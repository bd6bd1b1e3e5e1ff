"""Solution of exercise 8."""

from torch import Tensor

from examples.guide.step_08_sampling import Sampling, gumbel


def best_of_part(
    logits: Tensor, first_token: int, sampling: Sampling, position: int
) -> tuple[float, int]:
    """Returns the best score of a part, with its noise, and the token that has it."""
    scores = logits
    if sampling.temperature:
        tokens = range(first_token, first_token + len(logits))
        scores = logits / sampling.temperature + gumbel(sampling.seed, position, tokens)
    best = int(scores.argmax())
    return float(scores[best]), first_token + best


def winner(parts: list[tuple[float, int]]) -> int:
    """Returns the token that `draw` of step 8 draws from all logits; parts come in any order."""
    return max(parts, key=lambda part: (part[0], -part[1]))[1]
