"""What an engine may tell of its prefix cache, and how fast, by what it announced of itself."""

from router.engines.connection_loss import ConnectionLost
from router.types import CacheUpdate, ModelInfo

MAX_BLOCKS = 1 << 21
"""Of one engine, whatever it announces: 33 million tokens in blocks of 16, and 300 MB here."""

# A busy engine computes 10,000 blocks a second in some hundred steps, each with a message.
_BLOCKS_PER_SECOND = 100_000.0
_MESSAGE_COST = 32
"""In blocks: so much dearer is a message than one of its blocks."""
_SPARE_BLOCKS = 1 << 16


class CacheBounds:
    """The bounds of one engine from the check of its model on."""

    def __init__(self, model: ModelInfo) -> None:
        self.num_blocks = min(max(0, model.num_blocks), MAX_BLOCKS)
        self._epoch = model.epoch
        self._num_in_snapshot = 0

    def check(self, update: CacheUpdate) -> None:
        """Takes note of a message before it is worked on.

        Raises:
            ConnectionLost: It is of another start of the engine, tells more blocks than the engine
                has, or is a part of a snapshot that brings it no further.
        """
        if update.epoch != self._epoch:
            raise ConnectionLost(f"its cache is of epoch {update.epoch}, it is of {self._epoch}")
        if update.is_snapshot:
            if update.is_first:
                self._num_in_snapshot = 0
            if not update.stored and not update.is_last:
                raise ConnectionLost("a part of a snapshot of its cache is empty")
            self._num_in_snapshot += len(update.stored)
            num_told = self._num_in_snapshot
        else:
            num_told = max(len(update.stored), len(update.removed))
        if num_told > self.num_blocks:
            raise ConnectionLost(f"it tells of more than its {self.num_blocks} blocks at once")


class CachePace:
    """Holds up an engine that tells more of its cache than one has to tell.

    It may send two whole snapshots at once; beyond that its messages are taken no faster than
    100,000 blocks a second, which is a tenth of a core.
    """

    def __init__(self) -> None:
        self._debt = 0.0
        self._time = 0.0

    def wait(self, update: CacheUpdate, num_blocks: int, now: float) -> float:
        """Returns how many seconds a message must wait.

        Args:
            update: The message.
            num_blocks: What the engine has.
            now: A clock, in seconds.
        """
        paid = (now - self._time) * _BLOCKS_PER_SECOND
        cost = len(update.stored) + len(update.removed) + _MESSAGE_COST
        self._debt = max(0.0, self._debt - paid) + cost
        self._time = now
        return max(0.0, self._debt - 2 * num_blocks - _SPARE_BLOCKS) / _BLOCKS_PER_SECOND
