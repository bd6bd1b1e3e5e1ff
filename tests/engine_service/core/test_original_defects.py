"""The defects of the program that this one grew out of.

Each check passes on our logic; `tests/mutants/original_*.patch` put the original's in its place.
"""

import pytest

from engine_service.core.block_pool import BlockPool
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


DEFECTS = [
    check_pool_leak,
    check_shared_block_freed_early,
    check_prefix_lost_after_a_request,
    check_non_prefix_hits,
    check_exact_multiples,
    check_lost_sequences_at_the_batch_limit,
    check_max_tokens_not_counted,
    check_prompt_over_the_step_budget,
    check_empty_schedule,
    check_preempted_sequence_reaches_the_ranks_whole,
]
NAMES = [check.__name__.removeprefix("check_") for check in DEFECTS]


@pytest.mark.parametrize("check", DEFECTS, ids=NAMES)
def test_ours_is_free_of(check):
    check()
