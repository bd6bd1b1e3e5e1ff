"""Solution of exercise 13."""


class Patience:
    """Finds the clients that leave a line unread too long."""

    def __init__(self, max_ticks: int) -> None:
        """Watches nobody yet; a line may wait for so many whole seconds, from tick to tick."""
        self._max_ticks = max_ticks
        self._num_ticks: dict[str, int] = {}

    def sent(self, client: str) -> None:
        """Notes that a line is on its way to a client, perhaps behind others that wait for it."""
        # The oldest line counts: a client that gets more every second still reads nothing.
        self._num_ticks.setdefault(client, 0)

    def taken(self, client: str) -> None:
        """Notes that a client has taken all that was on its way."""
        self._num_ticks.pop(client, None)

    def tick(self) -> list[str]:
        """Returns the clients whose patience ends now, each once: they are forgotten."""
        for client in self._num_ticks:
            self._num_ticks[client] += 1
        late = [client for client, count in self._num_ticks.items() if count > self._max_ticks]
        for client in late:
            del self._num_ticks[client]
        return late
