"""Solution of exercise 15."""

from math import comb


def chance(pairs: list[tuple[float, float]]) -> float:
    """Returns how likely fair tosses are to be at least as uneven as these pairs, either way."""
    wins = sum(second < first for first, second in pairs)
    losses = sum(second > first for first, second in pairs)
    number = wins + losses
    ways = sum(comb(number, heads) for heads in range(max(wins, losses), number + 1))
    # With an even split, heads and tails would both count it.
    return min(1.0, 2.0 * ways / 2.0**number)
