import random

import pytest

from engine_service.core.types import (
    FinishReason,
    Request,
)
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.core.fake_executor import tokens
from tests.engine_service.core.helpers import (
    do_step,
    make_request,
    make_scheduler,
    result_of,
    running_ids,
)
from tests.fakes.sampling_records import new_seeds, new_temperatures

DEPTHS = pytest.mark.parametrize("depth", [1, 2])


def test_a_decode_comes_before_a_chunk_of_a_more_important_prompt():
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request(1, [5]))
    do_step(scheduler)
    scheduler.add(make_request(2, range(1, 31), priority=1))

    plans = [do_step(scheduler) for _ in range(3)]

    assert running_ids(scheduler) == [2, 1]
    for plan in plans:
        assert list(plan.num_scheduled_tokens) == [1, 7]
        assert list(plan.is_sampled) == [1, 0]


def test_prefill_and_decode_share_a_step():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2, 3]))
    do_step(scheduler)
    scheduler.add(make_request(2, [4, 5, 6, 8, 9]))

    plan = scheduler.schedule()

    assert list(plan.num_scheduled_tokens) == [1, 5]
    progress = scheduler.update(plan, result_of(plan))
    assert (progress.num_prefill_tokens, progress.num_decode_tokens) == (5, 1)


def test_more_sequences_than_budget_never_run_at_once():
    scheduler = make_scheduler(max_num_batched_tokens=3)
    for request_id in range(5):
        scheduler.add(make_request(request_id, [1], 8))

    plans = [do_step(scheduler) for _ in range(8)]

    assert all(list(plan.num_scheduled_tokens) == [1, 1, 1] for plan in plans)
    assert scheduler.statistics().num_waiting == 2


def test_larger_priority_runs_first_then_earlier_arrival():
    scheduler = make_scheduler(max_num_seqs=3)
    for request_id, priority in enumerate([0, 0, 5, -1, 5]):
        scheduler.add(make_request(request_id, [1], priority=priority))

    scheduler.schedule()

    assert [event.request_id for event in scheduler.take_events().admissions] == [2, 4, 0]


def test_one_that_does_not_fit_lets_none_behind_it_pass():
    scheduler = make_scheduler(num_blocks=8, block_size=4)
    scheduler.add(make_request(1, range(1, 20), 5))
    scheduler.add(make_request(2, range(31, 50), 5))
    scheduler.add(make_request(3, [5], 5))

    do_step(scheduler)

    assert running_ids(scheduler) == [1]


def test_one_that_did_not_fit_is_admitted_once_its_prefix_can_be_found():
    scheduler = make_scheduler(block_size=4, num_blocks=8)
    prompt = list(range(1, 22))
    scheduler.add(make_request(1, range(50, 61), max_tokens=2))
    scheduler.add(make_request(2, prompt, max_tokens=2))
    do_step(scheduler)
    do_step(scheduler)
    assert running_ids(scheduler) == []

    # As many blocks are free, and as many run, as when request 2 did not fit; but two are its own.
    scheduler.add(make_request(3, prompt[:9], max_tokens=9, priority=1))
    do_step(scheduler)

    assert running_ids(scheduler) == [3, 2]
    assert scheduler.take_events().admissions[-1].num_cached_tokens == 8


def fill_pool(scheduler):
    """Lets three sequences run until one lacks a block; returns the plan of that step."""
    for request_id, priority in [(1, 0), (2, 1), (3, 0)]:
        scheduler.add(make_request(request_id, [10 * request_id] * 4, 12, priority=priority))
    for _ in range(20):
        plan = do_step(scheduler)
        events = scheduler.take_events()
        if events.num_preemptions:
            return plan
    raise AssertionError("nobody was preempted")


def test_the_victim_has_the_lowest_priority_and_of_those_is_the_youngest():
    scheduler = make_scheduler(num_blocks=8, block_size=4)

    fill_pool(scheduler)

    assert running_ids(scheduler) == [2, 1]
    assert scheduler._waiting.first.request_id == 3


def test_a_step_that_preempted_admits_nobody():
    scheduler = make_scheduler(num_blocks=8, block_size=4, max_num_seqs=3)
    scheduler.add(make_request(9, [1], 60, priority=-2))

    plan = fill_pool(scheduler)

    assert not plan.new_slots


def test_a_victim_returns_only_when_the_running_ones_have_a_block_to_spare():
    scheduler = make_scheduler(num_blocks=8, block_size=4, caching=False)
    fill_pool(scheduler)
    num_preemptions = 0
    while scheduler.has_unfinished:
        num_free_blocks = scheduler.pool.num_free_blocks
        num_running = len(scheduler._running)
        plan = do_step(scheduler)
        num_preemptions += scheduler.take_events().num_preemptions
        if plan.new_slots:
            assert num_free_blocks - len(plan.block_ids) >= num_running

    assert num_preemptions == 0


def test_a_victim_resumes_from_its_own_cached_blocks():
    scheduler = make_scheduler(num_blocks=9, block_size=4)
    fill_pool(scheduler)
    victim = scheduler._waiting.first
    scheduler.cancel(1)

    plan = scheduler.schedule()

    assert plan.new_slots[0] == victim.slot
    assert plan.num_computed_tokens[1] == 4
    assert plan.new_num_tokens[0] == len(victim.token_ids)
    assert not scheduler.take_events().admissions, "it was admitted before"


@DEPTHS
@pytest.mark.parametrize("max_tokens", [1, 2, 9])
def test_no_row_is_planned_past_max_tokens(depth, max_tokens):
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2, 3], max_tokens))
    plans, collected = [], 0
    while scheduler.has_unfinished:
        plan = scheduler.schedule() if len(plans) - collected < depth else None
        if plan:
            plans.append(plan)
        else:
            scheduler.update(plans[collected], result_of(plans[collected]))
            collected += 1

    assert sum(sum(plan.is_sampled) for plan in plans) == max_tokens
    assert collected == len(plans)


def test_a_sequence_whose_newest_token_is_unknown_is_planned_again():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2, 3], 5))

    first, second = scheduler.schedule(), scheduler.schedule()

    assert (first.num_computed_tokens[0], first.num_scheduled_tokens[0]) == (0, 3)
    assert (second.num_computed_tokens[0], second.num_scheduled_tokens[0]) == (3, 1)
    assert second.is_sampled[0]
    assert not second.new_slots


def test_the_token_after_a_stop_is_dropped_and_leaves_no_trace():
    scheduler = make_scheduler(block_size=1)
    scheduler.add(make_request(1, [1, 2], 9, stop_token_ids=frozenset({7})))
    first, second = scheduler.schedule(), scheduler.schedule()

    stopped = scheduler.update(first, result_of(first, 7))
    finishes = scheduler.take_events().finishes
    extra = scheduler.update(second, result_of(second, 8))

    assert list(stopped.token_ids) == [7]
    assert [(finish.reason, finish.stop_token_id) for finish in finishes] == [
        (FinishReason.STOP, 7)
    ]
    assert not extra.token_ids
    assert scheduler.pool.num_free_blocks == 32
    assert len(scheduler.pool.findable_hashes()) == 2
    assert scheduler.schedule() is None


def test_cancelled_blocks_are_free_before_the_next_step():
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    scheduler.add(make_request(1, range(1, 14), 3))
    do_step(scheduler)
    scheduler.add(make_request(2, range(21, 34), 3))

    assert scheduler.cancel(1)
    plan = scheduler.schedule()

    assert len(plan.new_slots) == 1
    assert not scheduler.cancel(1)


def test_cancelled_blocks_and_slot_wait_for_the_step_in_flight():
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_num_seqs=1)
    scheduler.add(make_request(1, range(1, 14), 3))
    scheduler.add(make_request(2, range(21, 34), 3))
    plan = scheduler.schedule()

    scheduler.cancel(1)

    assert scheduler.schedule() is None
    scheduler.update(plan, result_of(plan))
    assert list(scheduler.schedule().new_slots) == [0]


def test_preempted_blocks_wait_for_the_step_in_flight():
    scheduler = make_scheduler(num_blocks=6, block_size=4)
    scheduler.add(make_request(1, range(1, 9), 9))
    scheduler.add(make_request(2, range(11, 17), 9))
    in_flight = [scheduler.schedule() for _ in range(5)]

    # Request 1 lacks a block, request 2 has rows in flight.
    assert scheduler.schedule() is None
    assert scheduler.take_events().num_preemptions == 1
    assert running_ids(scheduler) == [1]
    assert scheduler.pool.num_free_blocks == 0

    for plan in in_flight:
        scheduler.update(plan, result_of(plan))
    assert scheduler.pool.num_free_blocks == 3
    assert len(scheduler._waiting.first.token_ids) == 6 + 5, "its tokens in flight are kept"
    assert list(scheduler.schedule().num_computed_tokens) == [12]


def test_a_block_is_findable_once_a_step_that_writes_it_is_planned():
    scheduler = make_scheduler(block_size=4, max_num_batched_tokens=5)
    scheduler.add(make_request(1, range(1, 10)))
    scheduler.schedule()
    assert len(scheduler.pool.findable_hashes()) == 1
    scheduler.schedule()
    assert len(scheduler.pool.findable_hashes()) == 2


def test_of_equal_prompts_in_one_step_the_first_computes_for_all():
    scheduler = make_scheduler(block_size=4)
    for request_id in 1, 2, 3:
        scheduler.add(make_request(request_id, range(1, 10)))

    plan = do_step(scheduler)

    assert list(plan.num_computed_tokens) == [0, 8, 8]
    assert list(plan.num_scheduled_tokens) == [9, 1, 1]
    first, second, third = (list(plan.block_ids[index : index + 3]) for index in (0, 3, 6))
    assert first[:2] == second[:2] == third[:2]
    assert len({first[2], second[2], third[2]}) == 3
    assert [one.num_cached_tokens for one in scheduler.take_events().admissions] == [0, 8, 8]


def test_block_of_one_cancelled_while_its_step_is_in_flight_can_still_be_hit():
    scheduler = make_scheduler(block_size=4)
    scheduler.add(make_request(1, range(1, 10)))
    plan = scheduler.schedule()
    scheduler.cancel(1)
    scheduler.add(make_request(2, range(1, 10)))

    following = scheduler.schedule()

    assert list(following.num_computed_tokens) == [8]
    scheduler.update(plan, result_of(plan))
    assert [scheduler.pool.ref_count(block_id) for block_id in following.block_ids] == [1, 1, 1]


def test_a_chain_whose_foreign_parent_is_gone_is_registered_anew():
    scheduler = make_scheduler(block_size=4, num_blocks=8)
    # Both fill their first block in one step, by decoding; it is registered for request 1.
    scheduler.add(make_request(1, range(1, 4), 3))
    scheduler.add(make_request(2, range(1, 4), 9))
    for _ in range(3):
        do_step(scheduler)
    assert running_ids(scheduler) == [2]
    assert len(scheduler.pool.findable_hashes()) == 1
    # Takes all free blocks, that of request 1, whose hash request 2 relied on, among them.
    taken = scheduler.pool.allocate(scheduler.pool.num_free_blocks)
    assert not scheduler.pool.findable_hashes()
    scheduler.pool.free(taken)

    for _ in range(3):
        do_step(scheduler)

    assert len(scheduler.pool.findable_hashes()) == 2


def test_another_salt_shares_nothing():
    scheduler = make_scheduler(block_size=4)
    for request_id, salt in enumerate(["", "a", "a"]):
        scheduler.add(
            Request(
                request_id=request_id,
                prompt_token_ids=tokens(*range(1, 10)),
                cache_salt=salt,
                sampling_params=SamplingParams(max_tokens=2),
            )
        )
        do_step(scheduler)

    admissions = scheduler.take_events().admissions
    assert [admission.num_cached_tokens for admission in admissions] == [0, 0, 8]


def test_prefix_counts_are_those_of_admissions():
    scheduler = make_scheduler(block_size=4)
    for request_id in 1, 2:
        scheduler.add(make_request(request_id, range(1, 11), resumed=[3, 4]))
        do_step(scheduler)

    events = scheduler.take_events()

    assert events.num_prefix_query_tokens == 24
    assert events.num_prefix_hit_tokens == 8


@pytest.mark.parametrize(
    ("resumed", "max_tokens", "reason", "stop_token_id"),
    [
        ([5, 6], 2, FinishReason.LENGTH, None),
        ([5, 9], 8, FinishReason.STOP, 9),
        ([5, 9], 2, FinishReason.STOP, 9),
    ],
)
def test_resumed_tokens_that_end_the_request_cost_no_work(
    resumed, max_tokens, reason, stop_token_id
):
    scheduler = make_scheduler()
    stop_token_ids = frozenset({9})

    scheduler.add(
        make_request(1, [1, 2], max_tokens, resumed=resumed, stop_token_ids=stop_token_ids)
    )

    (finish,) = scheduler.take_events().finishes
    assert (finish.reason, finish.stop_token_id) == (reason, stop_token_id)
    assert not scheduler.has_unfinished
    assert scheduler.schedule() is None


def test_resumed_tokens_are_computed_like_a_prompt_and_count_as_output():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1, 2], 4, resumed=[5, 6, 8]))

    plan = do_step(scheduler)

    assert list(plan.new_token_ids) == [1, 2, 5, 6, 8]
    assert list(plan.num_scheduled_tokens) == [5]
    assert scheduler.take_events().finishes[0].reason is FinishReason.LENGTH


def test_waiting_prefill_tokens_are_those_still_to_compute():
    scheduler = make_scheduler(max_num_batched_tokens=8, max_num_seqs=1)
    scheduler.add(make_request(1, range(1, 31)))
    scheduler.add(make_request(2, range(1, 11)))
    do_step(scheduler)

    assert scheduler.statistics().num_waiting_prefill_tokens == 22 + 10


def test_a_seed_reaches_the_plan_and_the_admission():
    scheduler = make_scheduler()
    scheduler.add(make_request(1, [1], seed=2**63 - 1, temperature=0.5))

    plan = scheduler.schedule()

    assert new_seeds(plan) == [2**63 - 1]
    assert new_temperatures(plan) == [0.5]
    assert scheduler.take_events().admissions[0].seed == 2**63 - 1


def test_a_full_pool_preempts_few_and_computes_little_twice():
    # Without a spare block for each running sequence: 59 preemptions, 1.45 times the tokens.
    rng = random.Random(3)
    scheduler = make_scheduler(
        512, caching=False, num_blocks=150, block_size=16, max_num_seqs=64, max_model_len=512
    )
    num_needed_tokens = 0
    for request_id in range(60):
        num_prompt_tokens, max_tokens = rng.randrange(10, 200), rng.randrange(10, 300)
        num_needed_tokens += num_prompt_tokens + max_tokens - 1
        scheduler.add(make_request(request_id, [request_id] * num_prompt_tokens, max_tokens))

    num_computed_tokens = 0
    while scheduler.has_unfinished:
        num_computed_tokens += sum(do_step(scheduler).num_scheduled_tokens)

    assert scheduler.take_events().num_preemptions <= 30
    assert num_computed_tokens < 1.3 * num_needed_tokens
