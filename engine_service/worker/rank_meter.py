"""What one rank counts of itself, and the thread that reports it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from engine_service.core.types import RankStats
from engine_service.layers.ranks import Ranks

REPORT_SECONDS = 0.5
"""Between two reports of a rank."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS = 2.0

logger = logging.getLogger(__name__)


class RankMeter:
    """Counts the steps of one rank from now on. One thread counts; any other may read."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self._ranks = ranks
        self._device = device
        self._num_steps = 0
        self._lag_seconds = 0.0
        self._memory_bytes = 0
        # The first collectives wait for the slowest start.
        self._seconds_before = self._seconds = ranks.collective_seconds

    def begin_step(self, sent_at: float) -> None:
        """Counts a step, which this rank begins now.

        Args:
            sent_at: `time.monotonic()` when the first rank was about to send its plan.
        """
        self._num_steps += 1
        self._lag_seconds += time.monotonic() - sent_at

    def use_device(self) -> None:
        """Makes its device that of the calling thread, which otherwise also uses the first GPU."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def read(self) -> RankStats:
        """Returns the counts and the memory; the latter may ask the device."""
        # Short of file descriptors, or a broken device: the steps will say so.
        with suppress(OSError, RuntimeError):
            self._memory_bytes = _memory_bytes(self._device)
            self._seconds = self._ranks.collective_seconds
        before = self._seconds_before
        return RankStats(
            rank=self._ranks.rank,
            num_steps=self._num_steps,
            lag_seconds=self._lag_seconds,
            collective_seconds=None
            if self._seconds is None or before is None
            else self._seconds - before,
            memory_bytes=self._memory_bytes,
        )


def _memory_bytes(device: torch.device) -> int:
    """Returns what is in use of a GPU, by whomever; on a CPU, what is resident of this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES


@contextmanager
def reporting(meter: RankMeter, report: Callable[[RankStats], object]) -> Iterator[None]:
    """Reports twice a second while the block runs, from a thread, whatever the steps do.

    So the reports of a rank end only if its process stops or hangs as a whole. The thread ends
    early if `report` raises OSError.
    """
    ended = threading.Event()

    def run() -> None:
        try:
            meter.use_device()
            while not ended.is_set():
                report(meter.read())
                ended.wait(REPORT_SECONDS)
        except OSError as error:
            logger.debug("rank reports end error=%r", error)

    thread = threading.Thread(target=run, name="rank-report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # It may be in the device's driver, which may hang.
        thread.join(_STOP_SECONDS)
