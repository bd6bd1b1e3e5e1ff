"""Logprobs in the core: which the executor must bring, which are told, what ends a request."""

import dataclasses
import pickle
from array import array

import pytest

from engine_service.core.logprobs import RequestLogprobs, StepLogprobs
from engine_service.core.types import FinishReason, StepOutput
from protos.wire.reason import Reason
from tests.engine_service.core.fake_executor import FakeExecutor, make_info, oracle_logprobs
from tests.engine_service.core.helpers import (
    greedy,
    make_core,
    make_request,
    make_scheduler,
    run_until_idle,
)
from tests.fakes.hash_executor import HashExecutor
from tests.fakes.logprobs import pack, unpack

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def scoring(request_id, prompt, width=2, **params):
    return make_request(request_id, prompt, 0, prompt_logprobs=width, **params)


def told(core):
    """Steps until nothing is left to do; returns the outputs."""
    outputs = []
    while core.has_work:
        outputs.append(core.step())
    return outputs


def rows_of(outputs, name):
    """Returns request ID, position and rows of each report."""
    return [
        (request_id, position, unpack(rows))
        for output in outputs
        for request_id, position, rows in getattr(output, name) or ()
    ]


def test_steps_in_which_nobody_asks_carry_nothing():
    core = make_core()
    core.add(make_request(1, PROMPT, 3))

    outputs = told(core)

    assert all(output.logprobs is None for output in outputs)
    assert all(output.prompt_logprobs is None for output in outputs)
    scheduler = make_scheduler()
    scheduler.add(make_request(1, PROMPT, 3))
    assert not scheduler.schedule().num_prompt_logprobs


def test_each_chunk_of_a_prompt_tells_what_it_computed():
    core = make_core(options={"max_num_batched_tokens": 4})
    core.add(make_request(1, PROMPT, 2, prompt_logprobs=1, logprobs=3))

    outputs = told(core)

    rows = oracle_logprobs(PROMPT, 1, 100)
    chunks = [(1, 1, rows[0:4]), (1, 5, rows[4:8]), (1, 9, rows[8:9])]
    assert rows_of(outputs, "prompt_logprobs") == chunks
    whole = PROMPT + greedy(PROMPT, 2)
    expected = oracle_logprobs(whole, 3, 100)[-2:]
    found = rows_of(outputs, "logprobs")
    assert found == [(1, 10, expected[:1]), (1, 11, expected[1:])]


def test_prompt_with_logprobs_takes_no_hit_but_gives_one():
    core = make_core()
    core.add(make_request(1, PROMPT, 1))
    run_until_idle(core)
    core.add(make_request(2, PROMPT, 1, prompt_logprobs=0))
    scored = run_until_idle(core)
    assert scored.admissions[2].num_cached_tokens == 0
    assert scored.total("num_prefix_query_tokens") == 0
    core.add(make_request(3, PROMPT, 1))
    assert run_until_idle(core).admissions[3].num_cached_tokens == 8


@pytest.mark.parametrize("budget", [1, 3, 9, 64])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompt_is_scored_without_its_last_token_and_without_a_new_one(budget, depth):
    info = make_info()
    executor = FakeExecutor(info)
    core = make_core(executor, options={"max_num_batched_tokens": budget}, depth=depth)
    core.add(scoring(1, PROMPT))

    outputs = told(core)

    assert sum(output.stats.num_prefill_tokens for output in outputs) == len(PROMPT) - 1
    assert not any(output.token_ids for output in outputs)
    rows = [row for _, _, part in rows_of(outputs, "prompt_logprobs") for row in part]
    assert rows == oracle_logprobs(PROMPT, 2, 100)
    [end] = [finish for output in outputs for finish in output.finishes]
    assert (end.reason, end.stop_token_id) == (FinishReason.LENGTH, None)
    assert core.scheduler.pool.num_free_blocks == info.num_blocks


def test_prompt_of_one_token_ends_at_once_but_is_admitted():
    core = make_core()
    core.add(scoring(1, [5]))

    outcome = run_until_idle(core)

    assert outcome.admissions[1].num_cached_tokens == 0
    assert outcome.finishes[1].reason is FinishReason.LENGTH


def test_prompt_as_long_as_the_model_and_as_the_pool_is_scored():
    prompt = [1 + index % 50 for index in range(64)]
    for num_blocks in (32, 16):
        core = make_core(num_blocks=num_blocks)
        core.add(scoring(1, prompt))
        outputs = told(core)
        rows = [row for _, _, part in rows_of(outputs, "prompt_logprobs") for row in part]
        assert rows == oracle_logprobs(prompt, 2, 100)


def test_preempted_prompt_goes_on_telling_where_it_was():
    # The pool is too small for both to their ends, and the second gets one token per step.
    core = make_core(num_blocks=12, options={"max_num_batched_tokens": 2}, depth=2)
    core.add(make_request(1, PROMPT, 30))
    core.step()
    core.add(scoring(2, [20 + index for index in range(24)], priority=-1))

    outputs = told(core)

    assert sum(output.stats.num_preemptions for output in outputs) == 1
    computed = sum(output.stats.num_prefill_tokens for output in outputs)
    assert computed > len(PROMPT) + 24, "some of it was computed twice"
    parts = [part for part in rows_of(outputs, "prompt_logprobs") if part[0] == 2]
    positions = [position for _, position, _ in parts]
    rows = [row for _, _, part in parts for row in part]
    assert positions == sorted(set(positions))
    assert rows == oracle_logprobs([20 + index for index in range(24)], 2, 100)


def test_cancelled_prompt_tells_nothing_more():
    core = make_core(options={"max_num_batched_tokens": 4}, depth=2)
    core.add(scoring(1, PROMPT))
    assert rows_of([core.step()], "prompt_logprobs")
    core.cancel(1)

    assert not rows_of(told(core), "prompt_logprobs")
    assert core.scheduler._num_reporting == 0


class NanExecutor(FakeExecutor):
    """The logits at the position that the token 9 follows are not a distribution."""

    def _logprobs(self, value, token_id, width):
        own, likeliest, logprobs = super()._logprobs(value, token_id, width)
        return float("nan") if token_id == 9 else own, likeliest, logprobs


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_prompt_whose_logits_are_not_a_distribution_ends_alone(max_tokens):
    info = make_info()
    core = make_core(NanExecutor(info))
    # Parameters that contradict each other do not excuse it.
    params = {"allowed_token_ids": (5,), "bad_words_token_ids": ((5,),)}
    core.add(make_request(1, PROMPT, max_tokens, prompt_logprobs=1, **params))
    core.add(scoring(2, [1, 2, 3]))

    outputs = told(core)

    [failure] = [failure for output in outputs for failure in output.failures]
    assert failure.request_id == 1
    assert failure.error.reason is Reason.INTERNAL
    assert [request_id for request_id, _, _ in rows_of(outputs, "prompt_logprobs")] == [2]
    assert not any(output.token_ids for output in outputs)
    assert core.scheduler.pool.num_free_blocks == info.num_blocks


class SilentExecutor(FakeExecutor):
    """Brings no logprobs of one kind."""

    field = ""

    def _run(self, plan):
        return dataclasses.replace(super()._run(plan), **{self.field: None})


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_executor_that_brings_no_logprobs_is_noticed(field, monkeypatch):
    monkeypatch.setattr(SilentExecutor, "field", field)
    core = make_core(SilentExecutor(make_info()))
    core.add(make_request(1, PROMPT, 2, logprobs=1, prompt_logprobs=1))

    with pytest.raises(RuntimeError, match="brought none"):
        core.step()


def test_rows_are_cut_to_what_each_request_asked_for():
    rows = [(-1.0, [1, 2, 3], [-0.5, -1.0, -2.0]), (-4.0, [4, 5, 6], [-0.25, -3.0, -5.0])]
    whole = pack(rows)

    assert whole.width == 3
    assert whole.num_candidates == 8
    assert unpack(whole.part(0, 2)) == rows
    assert unpack(whole.part(1, 2, 2)) == [(-4.0, [4, 5], [-0.25, -3.0])]
    assert unpack(whole.part(0, 2, 0)) == [(-1.0, [], []), (-4.0, [], [])]
    assert unpack(whole.part(0, 0)) == []


def test_reports_hold_requests_of_different_widths():
    report = RequestLogprobs()
    assert report.or_none() is None
    parts = [(7, 3, pack([(-1.0, [1, 2], [-0.5, -1.0])] * 2)), (9, 1, pack([(-2.0, [], [])] * 3))]
    for part in parts:
        report.add(*part)

    assert list(report) == parts
    assert list(pickle.loads(pickle.dumps(StepOutput(logprobs=report))).logprobs) == parts
    assert isinstance(next(iter(report))[2], StepLogprobs)
    assert report.logprobs.typecode == array("f").typecode


def test_fake_model_of_routers_tests_scores_a_text_as_it_generated_it():
    executor = HashExecutor(
        vocab_size=100, eos_token_ids=(), prefill_tokens_per_second=0, decode_step_seconds=0
    )
    core = make_core(executor, options={"max_num_batched_tokens": 4})
    core.add(make_request(1, PROMPT, 5, logprobs=2))
    outputs = told(core)
    generated = [token_id for output in outputs for token_id in output.token_ids]
    rows = [row for _, _, part in rows_of(outputs, "logprobs") for row in part]
    assert [likeliest[0] for _, likeliest, _ in rows] == generated
    assert all(own == logprobs[0] == 0 for own, _, logprobs in rows)

    core.add(scoring(2, PROMPT + generated))
    scored = [row for _, _, part in rows_of(told(core), "prompt_logprobs") for row in part]
    assert len(scored) == len(PROMPT) + 4
    assert scored[-5:] == rows
