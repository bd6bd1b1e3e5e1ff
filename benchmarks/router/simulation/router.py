"""The router in simulated time: its placement, its prefix index, its view of the engines.

Choice and index are the router's own code. What surrounds them in router/engines/fleet.py and
router/engines/member.py, which live on an event loop and on connections, is repeated here: which
prompts count as sent but not yet reported, and how long blocks stay reserved.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.router.simulation.engine import Report
from benchmarks.router.simulation.workload import Request
from router.engines.member import _REPORT_SECONDS
from router.placement.policy import POLICIES, Policy, Query, place
from router.placement.prefix_index import PrefixIndex, Reservation
from router.types.engine_state import (
    CacheUpdate,
    EngineLoad,
    EngineSnapshot,
    EngineState,
    ModelInfo,
)

_IMBALANCE_COUNT = 64
_IMBALANCE_RATIO = 1.5
_MIN_MATCH_RATE = 0.3


def by_thresholds(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks as routers do that switch between cache and load.

    The fewest requests when counts differ much; else the longest match, if it is a good part of
    the prompt; else the fewest requests.
    """
    counts = [_num_requests(engine) for engine in available]
    most, least = max(counts), min(counts)
    is_imbalanced = most - least > _IMBALANCE_COUNT and most > _IMBALANCE_RATIO * least
    cached = query.num_cached_tokens
    longest = max((cached.get(engine.address, 0) for engine in available), default=0)
    if not is_imbalanced and longest > _MIN_MATCH_RATE * query.num_prompt_tokens:
        available = [e for e in available if cached.get(e.address, 0) == longest]
        least = min(map(_num_requests, available))
    return rng.choice([engine for engine in available if _num_requests(engine) == least])


def _num_requests(engine: EngineSnapshot) -> int:
    return max(engine.load.num_running + engine.load.num_waiting, engine.num_in_flight)


# What an engine says of its cache when it starts.
_EMPTY = CacheUpdate(
    epoch=1, sequence_number=0, stored=(), is_snapshot=True, is_first=True, is_last=True
)


def without_decode(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks as `prefix` does, for a request that decodes nothing."""
    return POLICIES["prefix"](available, replace(query, max_tokens=0), rng)


def without_blocks(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks as `prefix` does when no engine tells of its block pool."""
    blind = [replace(e, load=replace(e.load, num_blocks=0, num_free_blocks=0)) for e in available]
    return POLICIES["prefix"](blind, query, rng)


POLICY_OF: dict[str, Policy] = {
    **POLICIES,
    "thresholds": by_thresholds,
    "no_decode": without_decode,
    "no_blocks": without_blocks,
}
_USE_INDEX = ("prefix", "thresholds", "no_decode", "no_blocks")


class _Member:
    """What the router knows of one engine."""

    def __init__(self, address: str, info: ModelInfo) -> None:
        self.address = address
        self.info = info
        self.load = EngineLoad(
            state=EngineState.SERVING, num_free_blocks=info.num_blocks, num_blocks=info.num_blocks
        )
        self.num_in_flight = 0
        self.unreported: dict[int, tuple[float, int]] = {}
        """By the request's number, when it was sent and how many tokens it has to compute."""
        self.num_unreported_tokens = 0
        self._snapshot: EngineSnapshot | None = None

    def snapshot(self) -> EngineSnapshot:
        if self._snapshot is None:
            self._snapshot = EngineSnapshot(
                address=self.address,
                state=EngineState.SERVING,
                model=self.info,
                load=self.load,
                num_in_flight=self.num_in_flight,
                num_in_flight_prefill_tokens=self.num_unreported_tokens,
                num_indexed_blocks=0,
            )
        return self._snapshot

    def changed(self) -> None:
        self._snapshot = None

    def report(self, number: int) -> None:
        _, num_tokens = self.unreported.pop(number, (0.0, 0))
        self.num_unreported_tokens -= num_tokens


class Router:
    """Chooses engines by one policy.

    Args:
        policy: Its name.
        engines: What each serves.
        seed: Of its draws.
    """

    def __init__(self, policy: str, engines: Sequence[ModelInfo], seed: int) -> None:
        self._policy = POLICY_OF[policy]
        self._uses_index = policy in _USE_INDEX
        self._model = engines[0]
        self._block_size = self._model.block_size
        self._rng = random.Random(seed)
        self._index = PrefixIndex()
        self._members = [_Member(str(number), info) for number, info in enumerate(engines)]
        self._reservations: dict[int, Reservation] = {}
        self._num_placements = 0
        for member in self._members:
            self._index.add_engine(member.address, member.info.num_blocks, member.info.epoch)
            self._index.apply(member.address, _EMPTY)

    def place(self, now: float, request: Request) -> int:
        """Chooses an engine and counts the request there; returns the engine's number."""
        size = self._block_size
        num_tokens = request.num_prompt_tokens
        hashes = request.hashes[: num_tokens // size]
        cached: dict[str, int] = {}
        if self._uses_index:
            usable = hashes[: (num_tokens - 1) // size]
            cached = {name: depth * size for name, depth in self._index.match(usable).items()}
        query = Query(
            model=self._model.name,
            fingerprint=self._model.fingerprint,
            num_prompt_tokens=num_tokens,
            num_sequence_tokens=num_tokens + 1,
            num_cached_tokens=cached,
            turn=self._num_placements,
        )
        snapshots = [member.snapshot() for member in self._members]
        placement = place(self._policy, snapshots, query, self._rng)
        assert placement is not None, "every engine serves"
        self._num_placements += 1
        member = self._members[int(placement.engine)]
        if self._uses_index:
            self._reservations[request.number] = self._index.reserve(member.address, hashes)
        num_uncached = num_tokens - placement.num_predicted_cached_tokens
        member.unreported[request.number] = (now, num_uncached)
        member.num_unreported_tokens += num_uncached
        member.num_in_flight += 1
        member.changed()
        return int(placement.engine)

    def take(self, now: float, report: Report) -> None:
        """Takes in what an engine tells."""
        member = self._members[report.engine]
        member.load = report.load
        if self._uses_index and report.cache is not None:
            follows = self._index.apply(member.address, report.cache)
            assert follows, "no report is lost"
        for request in report.admitted:
            member.report(request.number)
        while member.unreported:
            number, (sent, _) = next(iter(member.unreported.items()))
            if sent > now - _REPORT_SECONDS:
                break
            member.report(number)
        member.num_in_flight -= len(report.finished)
        member.changed()

    def release(self, request: Request) -> None:
        """Ends the reservation of a request's blocks."""
        reservation = self._reservations.pop(request.number, None)
        if reservation is not None:
            self._index.release(reservation)
