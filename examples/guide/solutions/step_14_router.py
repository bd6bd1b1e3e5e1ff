"""Solution of exercise 14."""


class Losses:
    """The losses of one request; each request of a router has its own."""

    def __init__(self) -> None:
        self._num_tokens_before: int | None = None

    def may_go_on(self, num_tokens: int) -> bool:
        """Called whenever the request has lost its engine; says whether another one may try."""
        before, self._num_tokens_before = self._num_tokens_before, num_tokens
        return before is None or num_tokens > before
