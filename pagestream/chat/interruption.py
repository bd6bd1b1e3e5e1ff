"""Ctrl-C while an answer comes: ends the call, and nothing else."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Interruption:
    """Cancels a call at each Ctrl-C within a block.

    A KeyboardInterrupt would be raised wherever the program is, also while gRPC holds a lock, which
    would then never be released.

    Attributes:
        has_come: Whether Ctrl-C was pressed.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        """Watches nothing yet.

        Args:
            cancel: Ends the call; it is called in a thread of its own, and may be so again.
        """
        self.has_come = False
        self._cancel = cancel

    def __enter__(self) -> "Interruption":
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True
        threading.Thread(target=self._cancel, daemon=True).start()
