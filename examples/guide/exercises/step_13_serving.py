"""Exercise 13: a client that does not read, noticed by time instead of by tokens.

A bound on tokens says nothing about a client for which only a few wait: it may keep them, and its
connection, for ever. So count how long a line has waited. Do not look at a clock: if the server
itself stood still for a minute, its clients are not to blame. Something calls `tick` once a second
while the server runs; count ticks.
"""


class Patience:
    """Finds the clients that leave a line unread too long."""

    def __init__(self, max_ticks: int) -> None:
        """Watches nobody yet; a line may wait for so many whole seconds, from tick to tick."""
        raise NotImplementedError

    def sent(self, client: str) -> None:
        """Notes that a line is on its way to a client, perhaps behind others that wait for it."""
        raise NotImplementedError

    def taken(self, client: str) -> None:
        """Notes that a client has taken all that was on its way."""
        raise NotImplementedError

    def tick(self) -> list[str]:
        """Returns the clients whose patience ends now, each once: they are forgotten.

        The first tick may come right after a line, and does not complete a second for it. So a line
        is too late at tick number `max_ticks` + 1 after it was sent.
        """
        raise NotImplementedError
