"""Notices that a worker does not answer."""

import asyncio
import logging
from typing import Protocol

_MAX_UNANSWERED = 2
"""Checks in a row without an answer after which a worker counts as silent."""

_logger = logging.getLogger(__name__)


class Asked(Protocol):
    """A worker."""

    number: int

    def ask(self) -> asyncio.Future[None]:
        """Asks it; the result comes with its answer."""


class Silence:
    """How often in a row a worker was found not to have answered.

    Time in which nobody checks does not count, so that a machine that stood still blames no worker.
    """

    def __init__(self, worker: Asked) -> None:
        self._worker = worker
        self._asked: asyncio.Future[None] | None = None
        self._num_unanswered = 0

    @property
    def is_silent(self) -> bool:
        """Whether it was so in the last two checks or more."""
        return self._num_unanswered >= _MAX_UNANSWERED

    def check(self) -> None:
        """Asks again, if there was an answer; says once if there is none."""
        if self._asked is not None and not self._asked.done():
            self._num_unanswered += 1
            if self._num_unanswered == _MAX_UNANSWERED:
                _logger.warning("worker silent worker=%d", self._worker.number)
            return
        if self.is_silent:
            _logger.info("worker answers again worker=%d", self._worker.number)
        self._num_unanswered = 0
        self._asked = self._worker.ask()
