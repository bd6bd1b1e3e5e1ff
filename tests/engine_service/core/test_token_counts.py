"""Steps whose rows bring no token, one or several."""

import pytest

from engine_service.core.types import NO_TOKEN, FinishReason
from tests.engine_service.core.helpers import (
    make_request,
    make_scheduler,
    result_of,
    result_of_rows,
    running_ids,
)


def test_a_result_of_another_shape_is_refused():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2]))
    plan = scheduler.schedule()
    scheduler.add(make_request(2, [1, 2]))
    wrong = result_of(scheduler.schedule())

    with pytest.raises(RuntimeError, match="2 tokens from 2 rows"):
        scheduler.update(plan, wrong)


@pytest.mark.parametrize(
    "rows",
    [([7],), ([7], [8], []), ([7, 7], [8])],
    ids=["too few rows", "too many rows", "tokens of a row that is not sampled"],
)
def test_counts_that_do_not_fit_the_rows_are_refused(rows):
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.add(make_request(1, [1, 2]))
    scheduler.add(make_request(2, [1, 2, 3, 4]))
    plan = scheduler.schedule()
    assert list(plan.is_sampled) == [1, 0]

    with pytest.raises(RuntimeError, match="step 0 asked for 1 tokens from 2 rows"):
        scheduler.update(plan, result_of_rows(*rows))


def test_counts_that_do_not_add_up_to_the_tokens_are_refused():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2]))
    plan = scheduler.schedule()
    result = result_of_rows([7])
    result.token_ids.append(8)

    with pytest.raises(RuntimeError, match="2 tokens from 1 rows"):
        scheduler.update(plan, result)


def test_several_tokens_of_a_row_are_told_and_then_computed_together():
    scheduler = make_scheduler(block_size=4)
    scheduler.add(make_request(1, [1, 2, 3], 20))
    plan = scheduler.schedule()

    progress = scheduler.update(plan, result_of_rows([5, 6, 7, 8, 9, 10]))

    assert (list(progress.request_ids), list(progress.token_counts)) == ([1], [6])
    assert list(progress.token_ids) == [5, 6, 7, 8, 9, 10]
    assert scheduler.statistics().num_waiting_prefill_tokens == 0
    following = scheduler.schedule()
    assert list(following.num_computed_tokens) == [3]
    assert list(following.num_scheduled_tokens) == [6]
    assert list(following.is_sampled) == [1]
    assert list(following.block_indices) == [1, 2]
    assert len(scheduler.pool.findable_hashes()) == 2
    progress = scheduler.update(following, result_of_rows([11]))
    assert (progress.num_prefill_tokens, progress.num_decode_tokens) == (0, 6)


@pytest.mark.parametrize(
    ("row", "told", "reason"),
    [
        ([7, 9, 8], [7, 9], FinishReason.STOP),
        ([7, 8, 6, 9], [7, 8, 6], FinishReason.LENGTH),
        ([7, 8, 9, NO_TOKEN], [7, 8, 9], FinishReason.STOP),
    ],
)
def test_what_follows_a_rows_last_token_is_dropped(row, told, reason):
    scheduler = make_scheduler(block_size=1)
    scheduler.add(make_request(1, [1, 2], 3, stop_token_ids=frozenset({9})))
    scheduler.add(make_request(2, [3, 4], 3))

    progress = scheduler.update(scheduler.schedule(), result_of_rows(row, [5]))

    assert list(progress.request_ids) == [1, 2]
    assert list(progress.token_counts) == [len(told), 1]
    assert list(progress.token_ids) == [*told, 5]
    (finish,) = scheduler.take_events().finishes
    assert (finish.request_id, finish.reason) == (1, reason)
    assert finish.stop_token_id == (9 if reason is FinishReason.STOP else None)
    assert running_ids(scheduler) == [2]


def test_tokens_before_an_invalid_one_count():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2], 9))

    progress = scheduler.update(scheduler.schedule(), result_of_rows([7, 8, NO_TOKEN, 6]))

    assert list(progress.token_ids) == [7, 8]
    (failure,) = scheduler.take_events().failures
    assert failure.error.metadata == {"position": "4"}
    assert not scheduler.has_unfinished


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("prompt", [[1, 2, 3], [1, 2, 3, 4]], ids=["part of a block", "a block"])
def test_a_row_without_a_token_is_run_again(prompt, caching):
    scheduler = make_scheduler(block_size=4, caching=caching)
    scheduler.add(make_request(1, prompt, 9))
    first = scheduler.schedule()

    progress = scheduler.update(first, result_of_rows([]))

    assert not progress.request_ids
    again = scheduler.schedule()
    # A block that can be found is not written twice: the sequence gets another.
    is_moved = caching and len(prompt) == 4
    assert bool(again.new_slots) == is_moved
    assert scheduler.take_events().num_preemptions == is_moved
    assert again.num_computed_tokens[0] == (0 if is_moved else len(prompt) - 1)
    assert list(again.is_sampled) == [1]
    assert list(scheduler.update(again, result_of_rows([7])).token_ids) == [7]


@pytest.mark.parametrize("row", [[], [7, 8]], ids=["none", "two"])
def test_another_count_than_one_is_refused_where_a_step_in_flight_is_planned_on_one(row):
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2], 9))
    first, _ = scheduler.schedule(), scheduler.schedule()

    with pytest.raises(
        RuntimeError,
        match=rf"step 0 returned {len(row)} tokens for request 1, but step 1, .* "
        "max_steps_in_flight to 1",
    ):
        scheduler.update(first, result_of_rows(row))


@pytest.mark.parametrize("row", [[], [7, 8]], ids=["none", "two"])
def test_any_count_goes_where_no_step_in_flight_has_the_sequence(row):
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2], 1))
    scheduler.add(make_request(2, [3, 4], 9))
    first = scheduler.schedule()
    # The last token of request 1 is in flight.
    second = scheduler.schedule()
    assert len(second.slots) == 1

    scheduler.update(first, result_of_rows(row, [6]))

    assert scheduler.update(second, result_of(second)).token_ids[0] == 7
    assert bool(row) == (running_ids(scheduler) == [2])
