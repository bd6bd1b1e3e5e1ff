"""Exercise 15: is the second one faster, or was it luck?

Two programs were timed in turns. If neither were faster, each pair would be a coin toss: the second
one wins half of them. How uneven would so many tosses be at least as often? This is the sign test.
It looks at who won, and not by how much, so a single time that is a thousand times too long counts
for no more than any other.
"""


def chance(pairs: list[tuple[float, float]]) -> float:
    """Returns how likely fair tosses are to be at least as uneven as these pairs, either way.

    Of 10 pairs of which 9 have the same winner: the ways to get 9 or 10 heads, and those to get 9
    or 10 tails, of all 1,024 ways: 22 / 1,024. Pairs of equal times say nothing and do not count.
    Without any pair, or if each wins half of them, the result is 1.

    Args:
        pairs: Times of the first and of the second program.
    """
    raise NotImplementedError
