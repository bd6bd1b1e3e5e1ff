"""An amount of one thing that requests may hold together."""

from router.errors import QueueFull

_RETRY_SECONDS = 1.0


class Quota:
    """Counts what requests hold, and refuses what would be too much.

    An amount larger than the bound is let in when nothing else is held, so that it can be served.

    Attributes:
        held: How much is held now.
    """

    def __init__(self, option: str, bound: int, unit: str) -> None:
        """Holds nothing yet.

        Args:
            option: Name of the bound, for errors.
            bound: The most that may be held.
            unit: What is counted, for errors, such as "bytes of requests".
        """
        self.held = 0
        self._option = option
        self._bound = bound
        self._unit = unit

    def take(self, amount: int) -> None:
        """Holds an amount; `give_back` is owed.

        Raises:
            QueueFull: It is too much beside what others hold.
        """
        if self.held and self.held + amount > self._bound:
            raise QueueFull(
                f"{amount} more {self._unit} beside {self.held} are {self.held + amount}, "
                f"over {self._option} {self._bound}",
                {"value": str(amount), "held": str(self.held), self._option: str(self._bound)},
                retry_after=_RETRY_SECONDS,
            )
        self.held += amount

    def give_back(self, amount: int) -> None:
        """Holds an amount no more."""
        self.held -= amount
