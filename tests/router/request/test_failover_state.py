from array import array

import pytest

from protos.wire.sampling_params import SamplingParams
from protos.wire.status import Reason, error_status
from router.errors import EngineError, EngineLost, QueueFull
from router.request.failover import Failover
from router.request.retry_budget import RetryBudget
from router.types.engine_events import Admitted, PromptLogprobs, TokenRequest
from tests.fakes.fake_logprobs import made_up_logprobs


def error(reason):
    return EngineError(error_status(reason, "said", domain="pagestream.engine.v1"))


def lost():
    return EngineLost(error_status(Reason.ENGINE_FAILED, "lost", domain="pagestream.router.v1"))


def never_back(engine):
    return None


def failover(budget=None, **params):
    request = TokenRequest(
        request_id="r",
        model="m",
        prompt_token_ids=array("i", [1, 2]),
        sampling_params=SamplingParams(**params),
    )
    return Failover(request, budget or RetryBudget())


def test_next_engine_gets_the_tokens_and_the_seed_of_the_first():
    one = failover(temperature=0.7)
    one.admit(Admitted(engine="a", num_cached_tokens=0, seed=77))
    one.add_tokens([5, 6])
    one.leave("a", error(Reason.ENGINE_FAILED))
    one.add_tokens([7])
    one.leave("b", error(Reason.DRAINING))

    assert list(one.request.resume_token_ids) == [5, 6, 7]
    assert one.request.sampling_params == SamplingParams(temperature=0.7, seed=77)
    assert one.loss is not None


def test_request_without_tokens_stays_as_it_was():
    one = failover()
    one.admit(Admitted(engine="a", num_cached_tokens=0, seed=77))
    one.leave("a", error(Reason.ENGINE_FAILED))
    assert not one.request.resume_token_ids
    assert one.request.sampling_params.seed is None
    assert one.loss is None


def test_engines_that_refused_may_be_asked_again_once_it_got_on():
    one = failover()
    one.leave("a", QueueFull("full"))
    one.leave("b", error(Reason.STARTING))
    assert set(one.refused) == {"a", "b"}
    one.add_tokens([5])
    one.leave("c", error(Reason.DRAINING))
    assert set(one.refused) == {"c"}


@pytest.mark.parametrize("reason", [Reason.BAD_REQUEST, Reason.DEADLINE_EXCEEDED])
def test_what_lies_in_the_request_ends_it(reason):
    one = failover()
    one.add_tokens([5])
    with pytest.raises(EngineError):
        one.leave("a", error(reason))


def test_two_failures_without_a_token_between_them_end_it():
    one = failover()
    one.add_tokens([5])
    one.leave("a", error(Reason.ENGINE_FAILED))
    with pytest.raises(EngineError):
        one.leave("b", error(Reason.ENGINE_FAILED))


def test_failure_ends_it_when_the_budget_is_spent():
    budget = RetryBudget()
    while budget.take():
        pass
    one = failover(budget)
    one.add_tokens([5])
    with pytest.raises(EngineError):
        one.leave("a", error(Reason.ENGINE_FAILED))


def test_engines_that_hand_it_back_cost_no_budget():
    budget = RetryBudget()
    while budget.take():
        pass
    one = failover(budget)
    for engine in "abcdefghijkl":
        one.add_tokens([5])
        one.leave(engine, error(Reason.DRAINING))
    assert len(one.request.resume_token_ids) == 12


def with_tokens(budget=None):
    """A request that has a token, and whose engine "a" was lost."""
    one = failover(budget)
    one.add_tokens([5])
    one.leave("a", lost())
    return one


def test_engines_lost_before_they_admitted_it_do_not_end_a_request_with_tokens():
    one = with_tokens()
    for number in range(20):
        one.leave(f"b{number}", lost(), epoch=number, is_admitted=False)

    assert one.may_wait
    assert list(one.request.resume_token_ids) == [5]


def test_lost_engines_cost_no_budget_unless_they_had_admitted_it():
    budget = RetryBudget()
    one = with_tokens(budget)
    while budget.take():
        pass
    one.leave("b", lost(), is_admitted=False)
    with pytest.raises(EngineError):
        one.leave("c", lost(), is_admitted=True)


def test_engine_that_answers_that_it_failed_counts_though_it_admitted_nothing():
    one = with_tokens()
    with pytest.raises(EngineError):
        one.leave("b", error(Reason.ENGINE_FAILED), is_admitted=False)


def test_attempts_after_losses_in_a_row_are_fewer_and_fewer():
    one = with_tokens()
    num_attempts = 0
    for _ in range(100):
        if not one.must_wait:
            one.leave("b", lost(), is_admitted=False)
            num_attempts += 1
        one.wait(0.1, never_back)

    assert one.waited == pytest.approx(10.0)
    assert 5 <= num_attempts <= 8


def test_losses_do_not_make_a_request_wait_longer_but_failures_and_tokens_do():
    one = with_tokens()
    one.wait(1.0, never_back)
    one.leave("b", lost(), is_admitted=False)
    assert one.waited == 1.0
    one.add_tokens([6])
    one.leave("c", error(Reason.DRAINING))
    assert one.waited == 0.0


def test_request_without_a_token_waits_for_lost_engines_that_did_not_restart():
    one = failover()
    one.leave("a", lost(), epoch=1, is_admitted=False)
    assert not one.must_wait
    one.leave("b", lost(), epoch=2, is_admitted=False)
    assert one.must_wait
    assert one.may_wait

    one.wait(0.1, {"b": 22}.get)
    assert set(one.refused) == {"a", "b"}

    one.wait(0.1, {"a": 1, "b": 22}.get)
    assert set(one.refused) == {"b"}
    one.wait(0.1, never_back)
    assert not one.must_wait


def test_request_without_a_token_that_may_have_broken_two_engines_goes_nowhere():
    one = failover()
    one.leave("a", lost(), epoch=1, is_admitted=False)
    with pytest.raises(EngineError):
        one.leave("b", error(Reason.ENGINE_FAILED))


def test_request_without_a_token_does_not_wait_for_lost_engines_when_others_refused_it():
    one = failover()
    one.leave("a", lost(), epoch=1, is_admitted=False)
    assert one.may_wait
    one.leave("b", QueueFull("full"))
    assert not one.may_wait


def prompt_logprobs(first_position, count):
    expected = made_up_logprobs(first_position, [7] * count, 2)
    return PromptLogprobs(first_position=first_position, logprobs=expected)


def test_logprobs_of_a_prompt_are_seen_once():
    one = failover(prompt_logprobs=2)
    assert one.unseen(prompt_logprobs(1, 5)) == prompt_logprobs(1, 5)
    assert one.unseen(prompt_logprobs(6, 2)) == prompt_logprobs(6, 2)
    # Another engine begins again, and cuts them elsewhere.
    assert one.unseen(prompt_logprobs(1, 3)) is None
    assert one.unseen(prompt_logprobs(4, 4)) is None
    assert one.unseen(prompt_logprobs(7, 3)) == prompt_logprobs(8, 2)
    assert one.unseen(prompt_logprobs(10, 1)) == prompt_logprobs(10, 1)


def test_next_engine_scores_the_prompt_again_until_there_is_a_token():
    one = failover(temperature=0.7, prompt_logprobs=2, sample_index=3)
    one.admit(Admitted(engine="a", num_cached_tokens=0, seed=77))
    one.unseen(prompt_logprobs(1, 5))
    one.leave("a", error(Reason.ENGINE_FAILED))

    assert one.request.sampling_params == SamplingParams(
        temperature=0.7, prompt_logprobs=2, sample_index=3, seed=77
    )
    assert one.loss is not None
    assert one.may_wait

    one.add_tokens([5])
    one.leave("b", error(Reason.ENGINE_FAILED))

    assert one.request.sampling_params == SamplingParams(temperature=0.7, sample_index=3, seed=77)
    assert list(one.request.resume_token_ids) == [5]


def test_logprobs_that_come_again_are_no_progress():
    one = failover(prompt_logprobs=2)
    one.unseen(prompt_logprobs(1, 5))
    one.leave("a", error(Reason.ENGINE_FAILED))
    one.unseen(prompt_logprobs(1, 5))

    with pytest.raises(EngineError):
        one.leave("b", error(Reason.ENGINE_FAILED))
