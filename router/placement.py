"""Where a request goes: filter, cost, pick; pure functions over frozen snapshots of the fleet.

The default policy has one measure, the expected seconds to the first token, so that cache and load
need no switch between them:

    wait      prompt tokens ahead of this one over the engine's prefill rate; and when every place
              in its batch is taken, the time until enough of the running requests end
    prefill   this prompt's uncached tokens over the prefill rate, counted twice: they delay this
              request and whoever comes after it
    decode    one step of the present batch for each chunk of the prefill, which shares the steps
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from router.types import EngineSnapshot, EngineState

# For engines that have measured nothing yet: a small model on a good GPU, within a factor of ten.
# Only the ratio to other engines matters, and the first request brings real figures.
_PRIOR_PREFILL_TOKENS_PER_SECOND = 20_000.0
_PRIOR_STEP_SECONDS = 0.01

# What no engine tells, hence assumed of all: the length of an answer.
_PRIOR_OUTPUT_TOKENS = 128

# For engines that do not tell how many tokens one step computes.
_PRIOR_CHUNK_TOKENS = 2048

# How often a prefill counts: for this request, and for those that it delays.
_CROWDING = 2.0

# Costs this close to the least are equal: the figures behind them are no more exact.
_TIE_RATIO = 0.05
_TIE_SECONDS = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What placement needs to know of a request."""

    model: str
    fingerprint: str
    """Of the model: an engine that serves another one under the same name is none."""
    num_prompt_tokens: int
    num_sequence_tokens: int = 0
    """Tokens of prompt and output that an engine must be able to hold."""
    num_cached_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of the prompt that each engine holds; absent is 0."""
    excluded: frozenset[str] = frozenset()
    """Engines that refused or failed this request."""
    turn: int = 0
    """Number of the request, which `round_robin` counts by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The terms of one engine's cost, in seconds."""

    wait: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """The expected time to the first token, with the delay that it puts on others."""
        return self.wait + _CROWDING * self.prefill + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A choice and its terms, for logs and metrics."""

    engine: str
    num_predicted_cached_tokens: int
    """At the chosen engine."""
    num_best_cached_tokens: int
    """At the engine that holds most of the prompt, among those that could have been chosen."""
    cost: Cost


Policy = Callable[[Sequence[EngineSnapshot], Query, random.Random], EngineSnapshot]
"""Picks one of the candidates, of which there is at least one."""


def candidates(engines: Sequence[EngineSnapshot], query: Query) -> list[EngineSnapshot]:
    """Returns the engines that serve the model and can take the request now."""
    return [
        engine
        for engine in engines
        if engine.state is EngineState.SERVING
        and engine.model is not None
        and engine.model.name == query.model
        and engine.model.fingerprint == query.fingerprint
        and engine.model.max_sequence_len >= query.num_sequence_tokens
        and engine.address not in query.excluded
    ]


def cost(engine: EngineSnapshot, query: Query) -> Cost:
    """Returns what the request would cost on an engine."""
    load = engine.load
    rate = load.prefill_tokens_per_second or _PRIOR_PREFILL_TOKENS_PER_SECOND
    num_ahead = load.num_waiting_prefill_tokens + engine.num_in_flight_prefill_tokens
    num_uncached = query.num_prompt_tokens - query.num_cached_tokens.get(engine.address, 0)
    step = _step_seconds(engine)
    return Cost(
        wait=num_ahead / rate + _seconds_until_place(engine, step),
        prefill=num_uncached / rate,
        decode=step * math.ceil(num_uncached / _chunk_tokens(engine)),
    )


def place(
    policy: Policy, engines: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> Placement | None:
    """Chooses an engine for a request; None when no engine can take it."""
    available = candidates(engines, query)
    if not available:
        return None
    chosen = policy(available, query, rng)
    cached = query.num_cached_tokens
    return Placement(
        engine=chosen.address,
        num_predicted_cached_tokens=cached.get(chosen.address, 0),
        num_best_cached_tokens=max(cached.get(engine.address, 0) for engine in available),
        cost=cost(chosen, query),
    )


def by_prefix(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks the least cost in seconds; of engines about as good, the less busy of a random two."""
    costs = [cost(engine, query).total for engine in available]
    limit = min(costs) * (1 + _TIE_RATIO) + _TIE_SECONDS
    near = [engine for engine, total in zip(available, costs, strict=True) if total <= limit]
    return min(rng.sample(near, min(2, len(near))), key=_num_requests)


def by_load(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks the engine with the fewest requests, at random among equals."""
    least = min(map(_num_requests, available))
    return rng.choice([engine for engine in available if _num_requests(engine) == least])


def by_turn(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks one engine after the other, in the order of their addresses."""
    return sorted(available, key=lambda engine: engine.address)[query.turn % len(available)]


def at_random(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks any engine."""
    return rng.choice(available)


POLICIES: Mapping[str, Policy] = {
    "prefix": by_prefix,
    "round_robin": by_turn,
    "random": at_random,
    "least_loaded": by_load,
}
"""Policies by the name that an operator gives; the first is the default."""


def _num_requests(engine: EngineSnapshot) -> int:
    """Requests on the engine: its own count of all routers' lags behind ours of this one's."""
    return max(engine.load.num_running + engine.load.num_waiting, engine.num_in_flight)


def _chunk_tokens(engine: EngineSnapshot) -> int:
    """The most prompt tokens that one step computes."""
    told = 0 if engine.model is None else engine.model.max_num_batched_tokens
    return told if told > 0 else _PRIOR_CHUNK_TOKENS


def _step_seconds(engine: EngineSnapshot) -> float:
    """Time that one step of the present decode batch takes."""
    load = engine.load
    if not load.num_running:
        return 0.0
    if not load.decode_tokens_per_second:
        return _PRIOR_STEP_SECONDS
    return load.num_running / load.decode_tokens_per_second


def _seconds_until_place(engine: EngineSnapshot, step_seconds: float) -> float:
    """Expected wait for a place in the batch, when all are taken."""
    if engine.model is None:
        return 0.0
    num_places = engine.model.max_num_seqs
    num_excess = _num_requests(engine) + 1 - num_places
    if num_places <= 0 or num_excess <= 0:
        return 0.0
    # A full batch of n requests ends n of them in the time of one output.
    step_seconds = step_seconds or _PRIOR_STEP_SECONDS
    return num_excess / num_places * _PRIOR_OUTPUT_TOKENS * step_seconds
