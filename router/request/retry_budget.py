"""How many requests may go on after their engine failed: a share of those that came lately."""

_SHARE = 0.5
_RESERVE = 100.0
_MAX_BALANCE = 1000.0


class RetryBudget:
    """Bounds what failing engines can cost the others, as Finagle's RetryBudget does.

    Each request adds half a retry, and each retry takes one. The balance starts at 100, so that a
    quiet router survives the loss of an engine, and never exceeds 1,000, so that what came long
    ago counts no more.
    """

    def __init__(self) -> None:
        self._balance = _RESERVE

    def add_request(self) -> None:
        """Counts a request that came in."""
        self._balance = min(_MAX_BALANCE, self._balance + _SHARE)

    def take(self) -> bool:
        """Takes one retry; returns False if none is left."""
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
