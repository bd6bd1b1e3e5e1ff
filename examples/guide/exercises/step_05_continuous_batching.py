"""Exercise 5: a short question must not wait for a long prompt.

The engine computes prompts in order of arrival. If a prompt of 10,000 tokens came first, a question
of 15 tokens behind it waits for hundreds of steps. To take the shortest first is no solution
either: while short ones keep coming, the long one never ends.
"""

from examples.guide.step_05_continuous_batching import Engine, Request


class FairEngine(Engine):
    """An engine that computes the oldest prompt and short ones side by side."""

    def schedule(self) -> list[tuple[Request, int]]:
        """Divides the budget; returns each request that is computed, and how many of its tokens.

        1. Each request with one uncomputed token gets it.
        2. The oldest of the others gets half of what is left, rounded up, or less if it needs less.
        3. The others get what they need while something is left, the one that needs least first;
           of two that need the same, the older.
        4. What is left then goes to the oldest too, as far as it needs it.

        Each is given the blocks for the tokens that will be computed, and none is listed with 0.
        """
        raise NotImplementedError
