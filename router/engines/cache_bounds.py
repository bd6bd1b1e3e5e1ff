"""Bounds on the amount and rate of an engine's cache messages, based on its model information."""

from router.engines.connection_loss import ConnectionLost
from router.types.engine_state import CacheUpdate, ModelInfo

MAX_BLOCKS = 1 << 21
"""The most blocks of one engine: 33 million tokens in blocks of 16, and 300 MB of memory here."""

# A busy engine computes 10,000 blocks a second in about a hundred steps, with a message for each.
_BLOCKS_PER_SECOND = 100_000.0
_MESSAGE_COST = 32
"""In blocks: a message costs this much more than one of its blocks."""
_SPARE_BLOCKS = 1 << 16


class CacheBounds:
    """The bounds of one engine, from the check of its model on."""

    def __init__(self, model: ModelInfo) -> None:
        self.num_blocks = min(max(0, model.num_blocks), MAX_BLOCKS)
        self._epoch = model.epoch
        self._num_in_snapshot = 0

    def check(self, update: CacheUpdate) -> None:
        """Checks a message before it is applied.

        Raises:
            ConnectionLost: The message has another epoch, more blocks than the engine has, or is an
                empty part of a snapshot.
        """
        if update.epoch != self._epoch:
            raise ConnectionLost(f"its cache has epoch {update.epoch}, its model {self._epoch}")
        if update.is_snapshot:
            if update.is_first:
                self._num_in_snapshot = 0
            if not update.stored and not update.is_last:
                raise ConnectionLost("it sent an empty part of a snapshot of its cache")
            self._num_in_snapshot += len(update.stored)
            num_told = self._num_in_snapshot
        else:
            num_told = max(len(update.stored), len(update.removed))
        if num_told > self.num_blocks:
            raise ConnectionLost(f"it reports more than its {self.num_blocks} blocks at once")


class CachePace:
    """Slows down an engine that sends more cache messages than it needs to.

    It may send two whole snapshots at once. Beyond that, its messages are accepted at no more than
    100,000 blocks a second, which takes a tenth of a core.
    """

    def __init__(self) -> None:
        self._debt = 0.0
        self._time = 0.0

    def wait(self, update: CacheUpdate, num_blocks: int, now: float) -> float:
        """Returns how many seconds to delay a message.

        Args:
            update: The message.
            num_blocks: The engine's number of blocks.
            now: Time of a monotonic clock, in seconds.
        """
        paid = (now - self._time) * _BLOCKS_PER_SECOND
        cost = len(update.stored) + len(update.removed) + _MESSAGE_COST
        self._debt = max(0.0, self._debt - paid) + cost
        self._time = now
        return max(0.0, self._debt - 2 * num_blocks - _SPARE_BLOCKS) / _BLOCKS_PER_SECOND
