"""Bounds the total amount of one resource that requests hold together."""

from router.errors import QueueFull

_RETRY_SECONDS = 1.0


class Quota:
    """Counts what requests hold, and refuses what would exceed the bound.

    An amount above the bound is accepted if nothing else is held, so that it can be served at all.

    Attributes:
        held: The amount held now.
    """

    def __init__(self, option: str, bound: int, unit: str) -> None:
        """Starts with nothing held.

        Args:
            option: Name of the option that sets the bound, for errors.
            bound: The most that may be held.
            unit: What is counted, for errors, such as "bytes of requests".
        """
        self.held = 0
        self._option = option
        self._bound = bound
        self._unit = unit

    def take(self, amount: int) -> None:
        """Takes an amount; the caller must call `give_back` later.

        Raises:
            QueueFull: The total would exceed the bound, and others hold some of it.
        """
        if self.held and self.held + amount > self._bound:
            raise QueueFull(
                f"{amount} more {self._unit} on top of {self.held} are {self.held + amount}, "
                f"over {self._option} {self._bound}",
                {"value": str(amount), "held": str(self.held), self._option: str(self._bound)},
                retry_after=_RETRY_SECONDS,
            )
        self.held += amount

    def give_back(self, amount: int) -> None:
        """Gives an amount back."""
        self.held -= amount
