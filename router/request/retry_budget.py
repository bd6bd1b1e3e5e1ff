"""Limits retries after engine failures to a share of the recent requests."""

_SHARE = 0.5
_RESERVE = 100.0
_MAX_BALANCE = 1000.0


class RetryBudget:
    """Bounds the extra load that failing engines put on the others, as Finagle's RetryBudget does.

    Each request adds half a retry, and each retry takes one. The balance starts at 100, so that a
    quiet router survives the loss of an engine. It never exceeds 1,000, so that old requests do not
    count for ever.
    """

    def __init__(self) -> None:
        self._balance = _RESERVE

    def add_request(self) -> None:
        """Counts a new request."""
        self._balance = min(_MAX_BALANCE, self._balance + _SHARE)

    def take(self) -> bool:
        """Takes one retry; returns False if none is left."""
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
