"""Ranks as threads of one process: quick to start, and what one of them does can be seen."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from engine_service.layers.ranks import Ranks

_SECONDS = 60.0


class _Meeting:
    """Where the ranks lay down what they have, and take what all have."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size)
        self._given = [None] * size

    def exchange(self, rank, value):
        self._given[rank] = value
        self._barrier.wait(_SECONDS)
        given = list(self._given)
        # Nobody lays down the next one before all have taken this one.
        self._barrier.wait(_SECONDS)
        return given

    def abort(self):
        self._barrier.abort()


class ThreadRanks(Ranks):
    def __init__(self, rank, size, meeting, num_lanes):
        super().__init__(rank, size)
        self._meeting = meeting
        self._num_lanes = num_lanes

    def lane_sizes(self, num_tokens):
        if self._num_lanes == 1:
            return [num_tokens]
        assert self._num_lanes == 2
        return [num_tokens - num_tokens // 3, num_tokens // 3]

    def all_reduce(self, x):
        given = self._meeting.exchange(self.rank, x.clone())
        return torch.stack(given).sum(0)

    def end_sum(self, part, norm, residual):
        return norm(self.all_reduce(part.x), residual)

    sum_on_cpu = all_reduce

    def maximum(self, x):
        return torch.stack(self._meeting.exchange(self.rank, x.clone())).amax(0)

    def minimum(self, value):
        return min(self._meeting.exchange(self.rank, value))

    def from_first(self, values):
        return self._meeting.exchange(self.rank, values)[0]


class RankThreads:
    """A thread for each rank, which all do the same work at the same time."""

    def __init__(self, size, num_lanes=1):
        self._meeting = _Meeting(size)
        self._pool = ThreadPoolExecutor(size)
        self.ranks = [ThreadRanks(rank, size, self._meeting, num_lanes) for rank in range(size)]

    def run(self, work):
        """Calls `work` with each rank's number; returns the results in the order of ranks."""
        futures = [self._pool.submit(self._guard, work, rank.rank) for rank in self.ranks]
        errors = [error for future in futures if (error := future.exception(2 * _SECONDS))]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]

    def close(self):
        self._pool.shutdown()

    def _guard(self, work, rank):
        try:
            return work(rank)
        except BaseException:
            self._meeting.abort()
            raise
