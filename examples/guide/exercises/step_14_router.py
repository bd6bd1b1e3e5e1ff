"""Exercise 14: a request that kills engines.

Some prompt makes an engine end: it meets a bug, or needs more memory than there is. The router of
step 14 sends it to the next engine, which ends too, and so on. One request has ended the fleet.

It cannot be known which of an engine's requests was to blame. But a request that got a new token
from an engine was not the one that its prompt broke; and one that loses two engines in a row,
without a token in between, had better not see a third.
"""


class Losses:
    """The losses of one request; each request of a router has its own."""

    def may_go_on(self, num_tokens: int) -> bool:
        """Called whenever the request has lost its engine; says whether another one may try.

        Args:
            num_tokens: How many tokens the client has been sent by now, by all engines together.

        Returns:
            False if no token came since the loss before this one. True if some came, and at the
            first loss.
        """
        raise NotImplementedError
