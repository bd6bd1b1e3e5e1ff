"""The defects of the program that this one grew out of, each with the logic that had it.

Each check passes on our logic and fails when the original's is put in its place.
"""

import pytest

from engine_service.core.block_pool import BlockPool, PrefixMatch
from engine_service.core.plan_builder import PlanBuilder
from engine_service.core.scheduler import Scheduler
from tests.engine_service.core.fake_executor import tokens
from tests.engine_service.core.helpers import greedy, make_core, make_request, run_until_idle


def check_generation(prompts, max_tokens, **settings):
    """Sends all prompts at once; all must end with the model's tokens."""
    core = make_core(**settings)
    for request_id, prompt in enumerate(prompts):
        core.add(make_request(request_id, prompt, max_tokens))
    outcome = run_until_idle(core)
    assert outcome.finishes.keys() == set(range(len(prompts)))
    for request_id, prompt in enumerate(prompts):
        assert outcome.tokens[request_id] == greedy(prompt, max_tokens)
    return outcome


def check_pool_leak():
    pool = BlockPool(8, 4, True)
    for _ in range(8):
        pool.free(pool.allocate(2))
    assert pool.num_free_blocks == 8


def check_shared_block_freed_early():
    pool = BlockPool(2, 4, True)
    shared = pool.allocate(1)
    pool.touch(shared)
    pool.free(shared)
    assert pool.allocate(1) != shared
    assert pool.num_free_blocks == 0


def check_prefix_lost_after_a_request():
    core = make_core(block_size=4)
    prompt = range(1, 14)
    for request_id in range(2):
        core.add(make_request(request_id, prompt, 2))
        outcome = run_until_idle(core)
    assert outcome.admissions[1].num_cached_tokens == 12


def check_non_prefix_hits():
    pool = BlockPool(4, 2, True)
    table = pool.allocate(2)
    number = pool.register(table[0], 10, "", tokens(1, 2))
    pool.register(table[1], 11, number, tokens(3, 4))
    match = pool.match_prefix(tokens(9, 9, 3, 4, 5), [99, 11], "")
    assert match.block_ids == []


def check_exact_multiples():
    for num_tokens in (4, 8, 12):
        core = make_core(block_size=4)
        prompt = range(1, num_tokens + 1)
        for request_id in range(2):
            core.add(make_request(request_id, prompt, 6))
            outcome = run_until_idle(core)
            assert outcome.tokens[request_id] == greedy(prompt, 6)
        assert outcome.admissions[1].num_cached_tokens == num_tokens - 4


def check_lost_sequences_at_the_batch_limit():
    check_generation([[5 + n] for n in range(6)], 4, max_num_seqs=4)


def check_max_tokens_not_counted():
    outcome = check_generation([[1, 2, 3]], 4)
    assert len(outcome.tokens[0]) == 4


def check_prompt_over_the_step_budget():
    check_generation([range(1, 41)], 3, options={"max_num_batched_tokens": 16})


def check_empty_schedule():
    core = make_core()
    assert not core.step().token_ids
    # Both need a third block at once and one is left; later the first needs a fourth.
    outcome = check_generation([range(1, 8), range(11, 18)], 8, num_blocks=5, block_size=4)
    assert outcome.total("num_preemptions") == 1


def check_preempted_sequence_reaches_the_ranks_whole():
    outcome = check_generation([range(1, 8), range(11, 18)], 10, num_blocks=6, block_size=4)
    assert outcome.total("num_preemptions") > 0


def allocate_without_owner(self, count, allocate=BlockPool.allocate):
    block_ids = allocate(self, count)
    for block_id in block_ids:
        self._ref_counts[block_id] = 0
    return block_ids


def free_at_exactly_zero(self, block_table):
    for block_id in reversed(block_table):
        self._ref_counts[block_id] -= 1
        if self._ref_counts[block_id] == 0:
            self._link(block_id, before=0)


def touch_used(self, block_ids):
    for block_id in block_ids:
        self._ref_counts[block_id] += 1


def free_and_forget(self, block_table, free=BlockPool.free):
    for block_id in block_table:
        if self._registrations[block_id]:
            self._unregister(block_id)
    free(self, block_table)


def match_any_block(self, token_ids, block_hashes, cache_salt):
    block_ids = [self._block_of_hash[value] for value in block_hashes if value in self.findable]
    return PrefixMatch(block_ids=block_ids, parent=cache_salt, num_unowned=0)


def match_all_tokens(self, token_ids, block_hashes, cache_salt, match=BlockPool.match_prefix):
    return match(self, token_ids + tokens(0), block_hashes, cache_salt)


def drop_at_the_limit(self, builder, budget, schedule=Scheduler._schedule_waiting):
    schedule(self, builder, budget)
    if self._waiting and len(self._running) == self._max_num_running:
        self._dequeue(self._waiting.first)


def keep_the_old_length(self, sequence, token_id):
    sequence.num_pending_tokens -= 1
    sequence.num_computed_tokens -= 1


def whole_prompts_only(self, sequence, admit=Scheduler._admit):
    return len(sequence.token_ids) <= self._max_num_batched_tokens and admit(self, sequence)


def append_without_asking(self, sequence, num_blocks):
    return True


def ship_the_last_token(self, sequence, add=PlanBuilder.add_sequence):
    add(self, sequence)
    if sequence.num_output_tokens:
        del self._new_token_ids[-len(sequence.token_ids) : -1]
        self._new_num_tokens[-1] = 1


LEAK = {"allocate": allocate_without_owner, "free": free_at_exactly_zero, "touch": touch_used}

DEFECTS = [
    (check_pool_leak, BlockPool, LEAK),
    (check_shared_block_freed_early, BlockPool, LEAK),
    (check_prefix_lost_after_a_request, BlockPool, {"free": free_and_forget}),
    (
        check_non_prefix_hits,
        BlockPool,
        {"match_prefix": match_any_block, "findable": property(BlockPool.findable_hashes)},
    ),
    (check_exact_multiples, BlockPool, {"match_prefix": match_all_tokens}),
    (
        check_lost_sequences_at_the_batch_limit,
        Scheduler,
        {"_schedule_waiting": drop_at_the_limit},
    ),
    (check_max_tokens_not_counted, Scheduler, {"_append_token": keep_the_old_length}),
    (check_prompt_over_the_step_budget, Scheduler, {"_admit": whole_prompts_only}),
    (check_empty_schedule, Scheduler, {"_make_room": append_without_asking}),
    (
        check_preempted_sequence_reaches_the_ranks_whole,
        PlanBuilder,
        {"add_sequence": ship_the_last_token},
    ),
]
NAMES = [check.__name__.removeprefix("check_") for check, _, _ in DEFECTS]


@pytest.mark.parametrize("check", [check for check, _, _ in DEFECTS], ids=NAMES)
def test_ours_is_free_of(check):
    check()


@pytest.mark.parametrize(("check", "owner", "logic"), DEFECTS, ids=NAMES)
def test_the_originals_logic_has(check, owner, logic, monkeypatch):
    for name, function in logic.items():
        monkeypatch.setattr(owner, name, function, raising=False)

    with pytest.raises((AssertionError, MemoryError)):
        check()
