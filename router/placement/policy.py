"""Chooses the engine of a request: filter, cost, pick; pure functions over frozen snapshots.

The default policy has one measure, the seconds that a request costs on an engine, so that no switch
between cache and load is needed:

    wait      prompt tokens ahead of this one over the engine's prefill rate, and, if its batch or
              its KV pool has no room, the time until enough of its requests end
    prefill   this prompt's uncached tokens over the prefill rate, counted twice: they delay this
              request and those after it
    decode    the time of the answer's tokens at the engine's decode rate, shared with the requests
              already there; weighted 1/20, since most of it passes after the first token

An engine measures its rates. Until it has measured any, the mean of the model's other engines is
used. docs/placement.md shows the effect of each term.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from router.types.engine_state import Demands, EngineSnapshot, EngineState

# Used while no engine has measured anything: a small model on a good GPU, within a factor of ten.
# Only the ratio of the terms matters, and the first request brings real figures.
_PRIOR_PREFILL_TOKENS_PER_SECOND = 20_000.0
_PRIOR_DECODE_TOKENS_PER_SECOND = 2_000.0

# An engine's prefill rate counts as at least this share of the typical one. Its first steps may be
# far below its real rate; judged by them alone, it would get no request to show better.
_LEAST_PREFILL_RATIO = 1 / 8

# Engines do not report answer lengths, so this one is assumed, if the request allows it.
_PRIOR_OUTPUT_TOKENS = 128

# Weight of a prefill: it delays this request and those after it.
_CROWDING = 2.0

# Weight of a second of decoding, relative to a second before the first token.
_DECODE_WEIGHT = 0.05

_REFERENCE_PROMPT_TOKENS = 1024

# Costs this close to the least count as equal: the figures behind them are no more precise.
_TIE_RATIO = 0.05
_TIE_SECONDS = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What placement needs to know about a request."""

    model: str
    fingerprint: str
    """Of the model: an engine with another fingerprint under the same name is no candidate."""
    num_prompt_tokens: int
    num_sequence_tokens: int = 0
    """Tokens of prompt and output that an engine must be able to hold."""
    max_tokens: int | None = None
    """The longest answer that the request allows; None means no bound."""
    num_cached_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of the prompt that each engine holds; 0 if absent."""
    demands: Demands | None = None
    """What an engine must support; None if every engine does."""
    excluded: frozenset[str] = frozenset()
    """Engines that refused or failed this request."""
    turn: int = 0
    """Number of the request, which `round_robin` uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The weighted terms of one engine's cost, in seconds; their sum is the cost."""

    wait: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """The expected time to the first token, plus the delay that the request causes others."""
        return self.wait + self.prefill + self.decode

    def __str__(self) -> str:
        """Returns total and terms in milliseconds."""
        terms = (1e3 * term for term in (self.total, self.wait, self.prefill, self.decode))
        return "{:.1f}={:.1f}+{:.1f}+{:.1f}".format(*terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Tokens per second of an engine."""

    prefill: float = _PRIOR_PREFILL_TOKENS_PER_SECOND
    decode: float = _PRIOR_DECODE_TOKENS_PER_SECOND
    """All requests together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A choice, and what it was made of for the metrics."""

    engine: str
    num_predicted_cached_tokens: int
    """At the chosen engine."""
    num_best_cached_tokens: int
    """At the candidate that holds the most of the prompt."""


Policy = Callable[[Sequence[EngineSnapshot], Query, random.Random], EngineSnapshot]
"""Picks one of the candidates; there is at least one."""


def candidates(engines: Sequence[EngineSnapshot], query: Query) -> list[EngineSnapshot]:
    """Returns the engines that serve the model and can take the request now."""
    available = [
        engine
        for engine in engines
        if engine.state is EngineState.SERVING
        and engine.model is not None
        and engine.model.name == query.model
        and engine.model.fingerprint == query.fingerprint
        and engine.model.max_sequence_len >= query.num_sequence_tokens
        and engine.address not in query.excluded
    ]
    demands = query.demands
    if demands is None:
        return available
    return [engine for engine in available if engine.model and engine.model.supports(demands)]


def typical_rates(engines: Sequence[EngineSnapshot]) -> Rates:
    """Returns the mean of the rates that engines have measured."""
    prefill = [rate for e in engines if (rate := e.load.prefill_tokens_per_second)]
    decode = [rate for e in engines if (rate := e.load.decode_tokens_per_second)]
    return Rates(
        prefill=sum(prefill) / len(prefill) if prefill else _PRIOR_PREFILL_TOKENS_PER_SECOND,
        decode=sum(decode) / len(decode) if decode else _PRIOR_DECODE_TOKENS_PER_SECOND,
    )


def cost(engine: EngineSnapshot, query: Query, typical: Rates) -> Cost:
    """Returns what the request would cost on an engine.

    Args:
        engine: The engine.
        query: The request.
        typical: Replaces rates that the engine has not measured. The engine's prefill rate counts
            as at least an eighth of the typical one.
    """
    wait, prefill, decode = _terms(engine, query, typical)
    return Cost(wait=wait, prefill=prefill, decode=decode)


def costs(engines: Sequence[EngineSnapshot], query: Query) -> dict[str, Cost]:
    """Returns the costs of all candidates by address."""
    available = candidates(engines, query)
    typical = typical_rates(available)
    return {engine.address: cost(engine, query, typical) for engine in available}


def reference_costs(engines: Sequence[EngineSnapshot]) -> dict[str, Cost]:
    """Returns what a prompt of 1,024 tokens would cost on each engine that takes requests.

    No token is assumed cached, so that only load and rates matter.
    """
    found: dict[str, Cost] = {}
    models = {(e.model.name, e.model.fingerprint) for e in engines if e.model is not None}
    for name, fingerprint in models:
        query = Query(
            model=name, fingerprint=fingerprint, num_prompt_tokens=_REFERENCE_PROMPT_TOKENS
        )
        found |= costs(engines, query)
    return found


def place(
    policy: Policy, engines: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> Placement | None:
    """Chooses an engine for a request; None if no engine can take it."""
    available = candidates(engines, query)
    if not available:
        return None
    chosen = available[0] if len(available) == 1 else policy(available, query, rng)
    cached = query.num_cached_tokens
    return Placement(
        engine=chosen.address,
        num_predicted_cached_tokens=cached.get(chosen.address, 0),
        num_best_cached_tokens=max(cached.get(engine.address, 0) for engine in available),
    )


def by_prefix(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks the lowest cost; among nearly equal ones, the less loaded of two random engines."""
    typical = typical_rates(available)
    totals = [sum(_terms(engine, query, typical)) for engine in available]
    limit = min(totals) * (1 + _TIE_RATIO) + _TIE_SECONDS
    near = [engine for engine, total in zip(available, totals, strict=True) if total <= limit]
    return min(rng.sample(near, min(2, len(near))), key=_num_requests)


def by_load(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks the engine with the fewest requests, at random if several have as few."""
    least = min(map(_num_requests, available))
    return rng.choice([engine for engine in available if _num_requests(engine) == least])


def round_robin(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks the engines in turn, in the order of their addresses."""
    return sorted(available, key=lambda engine: engine.address)[query.turn % len(available)]


def at_random(
    available: Sequence[EngineSnapshot], query: Query, rng: random.Random
) -> EngineSnapshot:
    """Picks an engine at random."""
    return rng.choice(available)


POLICIES: Mapping[str, Policy] = {
    "prefix": by_prefix,
    "round_robin": round_robin,
    "random": at_random,
    "least_loaded": by_load,
}
"""Policies by the name that an operator sets; the first is the default."""


def _num_requests(engine: EngineSnapshot) -> int:
    """Requests on the engine. Its own count covers all routers, but lags behind ours."""
    return max(engine.load.num_running + engine.load.num_waiting, engine.num_in_flight)


def _terms(engine: EngineSnapshot, query: Query, typical: Rates) -> tuple[float, float, float]:
    """Returns the terms of `cost`, without objects: 64 of them would cost more than the sums."""
    load = engine.load
    prefill_rate = max(
        load.prefill_tokens_per_second or typical.prefill, typical.prefill * _LEAST_PREFILL_RATIO
    )
    num_ahead = load.num_waiting_prefill_tokens + engine.num_in_flight_prefill_tokens
    num_uncached = query.num_prompt_tokens - query.num_cached_tokens.get(engine.address, 0)
    num_requests = _num_requests(engine)
    # Time for one token of each request there.
    step = num_requests / (load.decode_tokens_per_second or typical.decode)
    wait = num_ahead / prefill_rate
    share = _share_to_end(engine, num_requests, num_ahead + num_uncached)
    if share > 0:
        wait += share * _PRIOR_OUTPUT_TOKENS * step
    return (
        wait,
        _CROWDING * num_uncached / prefill_rate,
        _DECODE_WEIGHT * _num_output_tokens(query) * step,
    )


def _num_output_tokens(query: Query) -> int:
    limit = query.max_tokens
    return _PRIOR_OUTPUT_TOKENS if limit is None else min(limit, _PRIOR_OUTPUT_TOKENS)


def _share_to_end(engine: EngineSnapshot, num_requests: int, num_prefill_tokens: int) -> float:
    """Returns the share of an engine's requests that must end before there is room for one more.

    In the time of one answer all of them end and free all slots and blocks.

    Args:
        engine: The engine.
        num_requests: Requests on it.
        num_prefill_tokens: Prompt tokens that need blocks: this request's and those ahead of it.
    """
    model, load = engine.model, engine.load
    if model is None:
        return 0.0
    num_excess = num_requests + 1 - model.max_num_seqs
    share = num_excess / model.max_num_seqs if model.max_num_seqs > 0 else 0.0
    num_lacking = num_prefill_tokens / model.block_size - load.num_free_blocks
    num_used = load.num_blocks - load.num_free_blocks
    if num_lacking > 0 and num_used > 0:
        share = max(share, num_lacking / num_used)
    return share
