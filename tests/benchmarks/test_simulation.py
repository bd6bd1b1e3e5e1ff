import math
from dataclasses import replace

import pytest

from benchmarks.router.simulation.cells import CELLS, claims, summary
from benchmarks.router.simulation.engine import Engine, Hardware
from benchmarks.router.simulation.intervals import interval
from benchmarks.router.simulation.router import POLICY_OF
from benchmarks.router.simulation.run import Scenario, simulate
from benchmarks.router.simulation.workload import (
    BLOCK_SIZE,
    CHAT,
    LONG_ANSWERS,
    UNIQUE,
    Conversation,
    Request,
    draw,
)
from benchmarks.workloads import WORKLOADS

SMALL = Scenario(workload=CHAT, num_engines=3, requests_per_second=4.0, num_requests=60)
TIGHT = replace(
    SMALL, workload=LONG_ANSWERS, num_requests=40, num_blocks=(300,), requests_per_second=20.0
)


def times(outcome):
    return [(r.engine, r.num_cached, r.first_token, r.finish) for r in outcome.requests]


@pytest.mark.parametrize("policy", POLICY_OF)
def test_every_request_finishes_after_its_first_token(policy):
    outcome = simulate(SMALL, policy, seed=1)

    assert len(outcome.requests) >= SMALL.num_requests
    assert all(r.arrival < r.first_token <= r.finish for r in outcome.requests)


@pytest.mark.parametrize("scenario", [SMALL, TIGHT])
def test_tokens_are_computed_once_each_unless_cached_or_preempted(scenario):
    outcome = simulate(scenario, "prefix", seed=2)

    engines, requests = outcome.engines, outcome.requests
    assert sum(e.num_output_tokens for e in engines) == sum(r.num_output_tokens for r in requests)
    num_to_compute = sum(r.num_prompt_tokens - r.num_cached for r in requests)
    num_computed = sum(e.num_prefill_tokens for e in engines)
    assert num_computed >= num_to_compute
    if not outcome.measures.num_preemptions:
        assert num_computed == num_to_compute


def test_pool_is_never_exceeded_and_free_again_at_the_end(monkeypatch):
    num_used = []
    end = Engine.end

    def watched(engine, now):
        report = end(engine, now)
        used = engine.pool.num_blocks - engine.pool.num_free
        num_used.append((used, used + engine.pool.num_cached))
        return report

    monkeypatch.setattr(Engine, "end", watched)
    outcome = simulate(TIGHT, "least_loaded", seed=3)

    assert outcome.measures.num_preemptions > 0
    assert max(total for _, total in num_used) == 300
    assert all(0 <= used <= total for used, total in num_used)
    assert all(engine.pool.num_free == 300 for engine in outcome.engines)


def test_equal_seeds_give_equal_runs_and_others_do_not():
    first, again, other = (simulate(SMALL, "prefix", seed) for seed in (4, 4, 5))

    assert times(first) == times(again)
    assert times(first) != times(other)


def test_every_policy_gets_the_same_conversations():
    def asked(policy):
        requests = simulate(SMALL, policy, seed=6).requests
        return sorted((r.number, r.num_prompt_tokens, r.num_output_tokens) for r in requests)

    assert asked("prefix") == asked("random")


def test_turns_grow_by_the_answer_and_share_their_blocks():
    conversations = draw(CHAT, num_engines=2, num_requests=200, requests_per_second=4, seed=7)

    grown = next(c for c in conversations if len(c.turns) > 1)
    first, second = grown.turns[:2]
    assert second.num_prompt_tokens > first.num_prompt_tokens + first.num_output_tokens
    assert len({tuple(c.hashes[:4]) for c in conversations}) < len(conversations)
    unique = draw(UNIQUE, num_engines=2, num_requests=200, requests_per_second=4, seed=7)
    hashes = [block for conversation in unique for block in conversation.hashes]
    assert len(set(hashes)) == len(hashes)


def run_one(engine, request, now=0.0):
    """Runs an engine until it is idle; returns the reports."""
    engine.receive(now, request)
    engine.start(now)
    reports = []
    while engine.step_end is not None:
        now = engine.step_end
        reports.append(engine.end(now))
        engine.start(now)
    return now, reports


def ask(number, num_prompt_tokens, num_output_tokens, hashes=()):
    conversation = Conversation(start=0.0, hashes=hashes, thinking=(), turns=[])
    return Request(
        number=number,
        conversation=conversation,
        turn=0,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
    )


def test_prompt_that_is_held_is_not_computed_again():
    engine, hashes = Engine(0, Hardware()), tuple(range(1, 100))
    run_one(engine, ask(0, 10 * BLOCK_SIZE, 2, hashes))
    again = ask(1, 10 * BLOCK_SIZE, 2, hashes)

    run_one(engine, again)

    assert again.num_cached == 9 * BLOCK_SIZE


def test_long_prompt_is_computed_in_chunks_of_the_budget():
    engine = Engine(0, Hardware())

    _, reports = run_one(engine, ask(0, 20_000, 1, tuple(range(1, 400))))

    assert [r.load.num_waiting_prefill_tokens for r in reports] == [
        20_000 - 8192,
        20_000 - 16_384,
        0,
    ]


@pytest.mark.parametrize(
    ("workload", "tokens_per_second"),
    [("decode_b1", 193), ("decode_b64", 4594), ("nano_bench", 9361)],
)
def test_engine_is_as_fast_as_what_it_was_fitted_to(workload, tokens_per_second):
    engine = Engine(0, Hardware())
    for number, (prompt, num_output_tokens) in enumerate(zip(*WORKLOADS[workload](), strict=True)):
        hashes = tuple(range(1000 * (number + 1), 1000 * (number + 1) + 100))
        engine.receive(0.0, ask(number, len(prompt), num_output_tokens, hashes))

    engine.start(0.0)
    while engine.step_end is not None:
        now = engine.step_end
        engine.end(now)
        engine.start(now)

    assert engine.num_output_tokens / now == pytest.approx(tokens_per_second, rel=0.06)


def test_arrival_ends_a_run_of_decode_steps_at_the_present_one():
    engine = Engine(0, Hardware())
    engine.receive(0.0, ask(0, 100, 500))
    engine.start(0.0)
    now = engine.step_end
    engine.end(now)
    engine.start(now)
    long = engine.step_end - now

    engine.receive(now + long / 2, ask(1, 100, 2))

    assert now + long / 2 <= engine.step_end < now + long / 2 + 0.01


def test_interval_is_students():
    found = interval([1.0, 2.0, 3.0])

    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    with pytest.raises(ValueError, match="1 samples"):
        interval([1.0])


def test_claims_fail_when_a_difference_may_be_none():
    cell = next(cell for cell in CELLS if cell.workload == "chat" and cell.load == "low")
    measures = simulate(SMALL, "prefix", seed=8).measures
    slow = replace(measures, ttft_p90=measures.ttft_p90 + 1)

    def holds(runs):
        found = summary(cell, {"prefix": [measures] * 3, "random": runs})
        return [claim["holds"] for claim in claims([found])]

    assert holds([slow, slow, slow]) == [True]
    assert holds([slow, measures, slow]) == [False]
