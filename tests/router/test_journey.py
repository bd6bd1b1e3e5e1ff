from array import array

import pytest

from protos.wire.status import Reason, error_status
from router.errors import EngineRefused, QueueFull
from router.journey import Journey
from router.retry_budget import RetryBudget
from router.types import Admitted, SamplingParams, TokenRequest


def error(reason):
    return EngineRefused(error_status(reason, "said", domain="pagestream.engine.v1"))


def journey(budget=None, **params):
    request = TokenRequest(
        request_id="r",
        model="m",
        prompt_token_ids=array("i", [1, 2]),
        sampling_params=SamplingParams(**params),
    )
    return Journey(request, budget or RetryBudget())


def test_next_engine_gets_the_tokens_and_the_seed_of_the_first():
    one = journey(temperature=0.7)
    one.admit(Admitted(engine="a", num_cached_tokens=0, seed=77))
    one.add_tokens([5, 6])
    one.leave("a", error(Reason.ENGINE_FAILED))
    one.add_tokens([7])
    one.leave("b", error(Reason.DRAINING))

    assert list(one.request.resume_token_ids) == [5, 6, 7]
    assert one.request.sampling_params == SamplingParams(temperature=0.7, seed=77)
    assert one.loss is not None


def test_request_without_tokens_stays_as_it_was():
    one = journey()
    one.admit(Admitted(engine="a", num_cached_tokens=0, seed=77))
    one.leave("a", error(Reason.ENGINE_FAILED))
    assert not one.request.resume_token_ids
    assert one.request.sampling_params.seed is None
    assert one.loss is None


def test_engines_that_refused_may_be_asked_again_once_it_got_on():
    one = journey()
    one.leave("a", QueueFull("full"))
    one.leave("b", error(Reason.STARTING))
    assert set(one.refused) == {"a", "b"}
    one.add_tokens([5])
    one.leave("c", error(Reason.DRAINING))
    assert set(one.refused) == {"c"}


@pytest.mark.parametrize("reason", [Reason.BAD_REQUEST, Reason.DEADLINE_EXCEEDED])
def test_what_lies_in_the_request_ends_it(reason):
    one = journey()
    one.add_tokens([5])
    with pytest.raises(EngineRefused):
        one.leave("a", error(reason))


def test_two_failures_without_a_token_between_them_end_it():
    one = journey()
    one.add_tokens([5])
    one.leave("a", error(Reason.ENGINE_FAILED))
    with pytest.raises(EngineRefused):
        one.leave("b", error(Reason.ENGINE_FAILED))


def test_failure_ends_it_when_the_budget_is_spent():
    budget = RetryBudget()
    while budget.take():
        pass
    one = journey(budget)
    one.add_tokens([5])
    with pytest.raises(EngineRefused):
        one.leave("a", error(Reason.ENGINE_FAILED))


def test_engines_that_hand_it_back_cost_no_budget():
    budget = RetryBudget()
    while budget.take():
        pass
    one = journey(budget)
    for engine in "abcdefghijkl":
        one.add_tokens([5])
        one.leave(engine, error(Reason.DRAINING))
    assert len(one.request.resume_token_ids) == 12
