"""One run: a workload, a fleet, a policy, a seed; and what is measured of it."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from benchmarks.router.simulation.engine import Engine, Hardware, Report
from benchmarks.router.simulation.router import Router
from benchmarks.router.simulation.workload import Conversation, Request, Workload, draw
from router.engines.member import _CONFIRM_SECONDS

_NETWORK_SECONDS = 0.0005
"""From the router to an engine, and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What one run is made of, but for policy and seed."""

    workload: Workload
    num_engines: int
    requests_per_second: float
    """First turns a second and engine, times the mean number of turns."""
    num_requests: int
    num_blocks: tuple[int, ...] = (Hardware().num_blocks,)
    """Sizes of the block pools, which the engines have in turn."""
    warm_up: float = 0.25
    """Measured is what arrives until the last conversation begins, but for this first share of that
    time, when caches are cold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What one run showed; seconds from a request's arrival at the router."""

    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    hit_rate: float
    """Prompt tokens found in the engines' caches, of all."""
    output_tokens_per_second: float
    """From the first arrival to the last finish."""
    seconds_per_output_token: float
    """From a request's first token to its last, over its other tokens; the mean of requests."""
    imbalance: float
    """Busy seconds of the busiest engine over the mean of all; 1 is even."""
    requests_per_second: float
    """That arrived, a second and engine, in the time that is measured."""
    num_preemptions: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A run and its parts, for tests."""

    requests: list[Request]
    engines: list[Engine]
    measures: Measures


def simulate(scenario: Scenario, policy: str, seed: int) -> Outcome:
    """Runs until every request has its last token."""
    conversations = draw(
        scenario.workload,
        num_engines=scenario.num_engines,
        num_requests=scenario.num_requests,
        requests_per_second=scenario.requests_per_second * scenario.num_engines,
        seed=seed,
    )
    hardware = [
        Hardware(num_blocks=scenario.num_blocks[number % len(scenario.num_blocks)])
        for number in range(scenario.num_engines)
    ]
    engines = [Engine(number, each) for number, each in enumerate(hardware)]
    router = Router(policy, [each.model_info() for each in hardware], seed)
    requests = _Simulation(engines, router).run(conversations)
    return Outcome(
        requests=requests, engines=engines, measures=_measure(requests, engines, scenario)
    )


class _Simulation:
    """The events of all, in the order of time."""

    def __init__(self, engines: Sequence[Engine], router: Router) -> None:
        self._engines = engines
        self._router = router
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._requests: list[Request] = []

    def run(self, conversations: Sequence[Conversation]) -> list[Request]:
        """Returns all requests in the order of arrival, each at its end."""
        for conversation in conversations:
            self._at(conversation.start, partial(self._arrive, conversation.turns[0]))
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        return self._requests

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _arrive(self, request: Request, now: float) -> None:
        request.arrival = now
        self._requests.append(request)
        request.engine = self._router.place(now, request)
        self._at(now + _NETWORK_SECONDS, partial(self._receive, request))

    def _receive(self, request: Request, now: float) -> None:
        engine = self._engines[request.engine]
        version = engine.version
        engine.receive(now, request)
        if engine.step_end is None:
            engine.start(now)
        if engine.version != version:
            self._await_end(engine)

    def _await_end(self, engine: Engine) -> None:
        if engine.step_end is not None:
            self._at(engine.step_end, partial(self._end, engine, engine.version))

    def _end(self, engine: Engine, version: int, now: float) -> None:
        if version != engine.version:
            return
        report = engine.end(now)
        self._at(now + _NETWORK_SECONDS, partial(self._report, report))
        engine.start(now)
        self._await_end(engine)

    def _report(self, report: Report, now: float) -> None:
        self._router.take(now, report)
        for request in report.started:
            request.first_token = now
            self._at(now + _CONFIRM_SECONDS, partial(self._release, request))
        for request in report.finished:
            request.finish = now
            conversation, turn = request.conversation, request.turn + 1
            if turn < len(conversation.turns):
                back = now + conversation.thinking[turn]
                self._at(back, partial(self._arrive, conversation.turns[turn]))

    def _release(self, request: Request, _: float) -> None:
        self._router.release(request)


def _measure(
    requests: Sequence[Request], engines: Sequence[Engine], scenario: Scenario
) -> Measures:
    last_start = max(request.arrival for request in requests if not request.turn)
    measured = [r for r in requests if scenario.warm_up * last_start <= r.arrival <= last_start]
    ttft = sorted(request.first_token - request.arrival for request in measured)
    busy = [engine.busy_seconds for engine in engines]
    last_finish = max(request.finish for request in requests)
    spacings = [
        (request.finish - request.first_token) / (request.num_output_tokens - 1)
        for request in measured
        if request.num_output_tokens > 1
    ]
    return Measures(
        ttft_p50=_quantile(ttft, 0.5),
        ttft_p90=_quantile(ttft, 0.9),
        ttft_p99=_quantile(ttft, 0.99),
        hit_rate=sum(r.num_cached for r in measured) / sum(r.num_prompt_tokens for r in measured),
        output_tokens_per_second=sum(r.num_output_tokens for r in requests)
        / (last_finish - requests[0].arrival),
        seconds_per_output_token=sum(spacings) / len(spacings),
        imbalance=max(busy) / (sum(busy) / len(busy)),
        requests_per_second=len(measured)
        / (last_start * (1 - scenario.warm_up) * scenario.num_engines),
        num_preemptions=sum(engine.num_preemptions for engine in engines),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of ordered values, between two by their distances."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
