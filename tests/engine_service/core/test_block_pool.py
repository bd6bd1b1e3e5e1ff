from array import array

import pytest

from engine_service.core.block_pool import BlockPool
from tests.engine_service.core.fake_executor import tokens

SALT = ""


def hashes(*values):
    return array("Q", values)


def make_pool(num_blocks=4, block_size=2, enable_prefix_caching=True):
    return BlockPool(num_blocks, block_size, enable_prefix_caching)


def register_chain(pool, block_ids, token_ids, block_hashes, salt=SALT):
    """Registers consecutive blocks of one sequence and returns the last number."""
    parent = salt
    size = pool.block_size
    for index, (block_id, block_hash) in enumerate(zip(block_ids, block_hashes, strict=True)):
        parent = pool.register(
            block_id, block_hash, parent, token_ids[index * size : (index + 1) * size]
        )
    return parent


def test_null_block_is_never_handed_out():
    pool = make_pool(num_blocks=4)

    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_free_blocks == 0


def test_too_many_blocks_are_refused_and_none_is_lost():
    pool = make_pool(num_blocks=4)

    with pytest.raises(MemoryError, match="5 blocks asked for, 4 free"):
        pool.allocate(5)

    assert pool.num_free_blocks == 4


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0)])
def test_a_pool_of_nothing_is_refused(num_blocks, block_size):
    with pytest.raises(ValueError, match="must be at least 1"):
        BlockPool(num_blocks, block_size, True)


def test_a_block_without_an_owner_cannot_be_freed():
    pool = make_pool()
    table = pool.allocate(1)
    pool.free(table)

    with pytest.raises(AssertionError, match="no owner"):
        pool.free(table)


def test_freed_block_that_holds_nothing_is_reused_first():
    pool = make_pool(num_blocks=4)
    table = pool.allocate(2)

    pool.free(table[1:])

    assert pool.allocate(1) == table[1:]


def test_cached_blocks_are_reused_least_recently_freed_first_and_tails_before_heads():
    pool = make_pool(num_blocks=4)
    old, new = pool.allocate(2), pool.allocate(2)
    register_chain(pool, old, tokens(1, 2, 3, 4), [10, 11])
    register_chain(pool, new, tokens(5, 6, 7, 8), [20, 21])

    pool.free(old)
    pool.free(new)

    assert pool.allocate(4) == [old[1], old[0], new[1], new[0]]


def test_a_freed_prefix_can_be_hit_until_it_is_reused():
    pool = make_pool(num_blocks=2)
    table = pool.allocate(2)
    register_chain(pool, table, tokens(1, 2, 3, 4), [10, 11])
    pool.free(table)

    assert pool.match_prefix(tokens(1, 2, 3, 4, 5), hashes(10, 11), SALT).block_ids == table
    pool.allocate(1)
    match = pool.match_prefix(tokens(1, 2, 3, 4, 5), hashes(10, 11), SALT)

    assert match.block_ids == table[:1]
    assert match.num_unowned == 1


def test_a_forgotten_block_is_not_found_and_free_ones_are_reused_first():
    pool = make_pool(num_blocks=3)
    owned, freed = pool.allocate(1), pool.allocate(1)
    register_chain(pool, owned + freed, tokens(1, 2, 3, 4), [10, 11])
    pool.free(freed)
    pool.take_delta()

    pool.forget(hashes(10, 11, 12))

    assert pool.match_prefix(tokens(1, 2, 3, 4, 5), hashes(10, 11), SALT).block_ids == []
    assert pool.ref_count(owned[0]) == 1
    assert sorted(pool.take_delta().removed) == [10, 11]
    assert (pool.num_free_blocks, pool.statistics().num_cached_blocks) == (2, 0)
    assert pool.allocate(1) == freed


def test_a_touched_block_is_not_reused():
    pool = make_pool(num_blocks=2)
    table = pool.allocate(1)
    register_chain(pool, table, tokens(1, 2), [10])
    pool.free(table)

    pool.touch(table)

    assert pool.ref_count(table[0]) == 1
    assert pool.allocate(1) != table
    assert pool.num_free_blocks == 0


def test_a_hit_leaves_the_last_token_to_compute():
    pool = make_pool()
    table = pool.allocate(2)
    register_chain(pool, table, tokens(1, 2, 3, 4), [10, 11])

    assert pool.match_prefix(tokens(1, 2), hashes(10), SALT).block_ids == []
    assert pool.match_prefix(tokens(1, 2, 3, 4), hashes(10, 11), SALT).block_ids == table[:1]
    assert pool.match_prefix(tokens(1, 2, 3, 4, 9), hashes(10, 11), SALT).block_ids == table


def test_the_first_of_two_equal_blocks_wins():
    pool = make_pool()
    first, second = pool.allocate(1), pool.allocate(1)

    number = pool.register(first[0], 10, SALT, tokens(1, 2))

    assert pool.register(second[0], 10, SALT, tokens(1, 2)) == number
    assert pool.match_prefix(tokens(1, 2, 3), hashes(10), SALT).block_ids == first
    pool.free(second)
    assert pool.statistics().num_cached_blocks == 0


@pytest.mark.parametrize(
    ("token_ids", "salt"),
    [(tokens(1, 3, 5), SALT), (tokens(1, 2, 5), "another")],
    ids=["other tokens", "other salt"],
)
def test_an_equal_hash_of_another_context_is_no_hit(token_ids, salt):
    pool = make_pool()
    (block_id,) = pool.allocate(1)
    pool.register(block_id, 10, SALT, tokens(1, 2))

    assert pool.match_prefix(token_ids, hashes(10), salt).block_ids == []


def test_an_equal_hash_and_block_after_another_prefix_is_no_hit():
    pool = make_pool()
    table = pool.allocate(2)
    register_chain(pool, table, tokens(1, 2, 8, 9), [10, 77])
    other = pool.allocate(1)
    pool.register(other[0], 20, SALT, tokens(3, 4))

    match = pool.match_prefix(tokens(3, 4, 8, 9, 5), hashes(20, 77), SALT)

    assert match.block_ids == other


def test_a_collision_leaves_the_first_registered_alone():
    pool = make_pool()
    first, second = pool.allocate(2)
    pool.register(first, 10, SALT, tokens(1, 2))

    assert pool.register(second, 10, SALT, tokens(3, 4)) is None
    assert pool.match_prefix(tokens(1, 2, 3), hashes(10), SALT).block_ids == [first]


def test_registration_numbers_are_never_reused():
    pool = make_pool(num_blocks=1)
    numbers = []
    for token_id in range(5):
        table = pool.allocate(1)
        numbers.append(pool.register(table[0], token_id, SALT, tokens(token_id, 1)))
        pool.free(table)

    assert len(set(numbers)) == 5


def test_a_child_of_a_reused_parent_gives_way_to_one_that_can_be_found():
    pool = make_pool(num_blocks=4)
    parent, child = pool.allocate(2)
    register_chain(pool, [parent, child], tokens(1, 2, 3, 4), [10, 11])
    pool.free([parent])
    lost = pool.allocate(2)
    assert parent not in lost
    (reused,) = pool.allocate(1)
    assert reused == parent
    pool.free(lost)
    again = pool.allocate(2)
    register_chain(pool, again, tokens(1, 2, 3, 4), [10, 11])

    match = pool.match_prefix(tokens(1, 2, 3, 4, 5), hashes(10, 11), SALT)

    assert match.block_ids == again
    assert pool.findable_hashes() == {10, 11}


def test_a_free_child_that_gives_way_is_empty_and_reused_first():
    pool = make_pool(num_blocks=3)
    parent, child, other = pool.allocate(3)
    register_chain(pool, [parent, child], tokens(1, 2, 3, 4), [10, 11])
    pool.free([parent])
    assert pool.allocate(1) == [parent]
    pool.free([child])
    assert pool.statistics().num_cached_blocks == 1

    register_chain(pool, [parent, other], tokens(1, 2, 3, 4), [10, 11])

    assert pool.statistics().num_cached_blocks == 0
    assert pool.statistics().num_empty_blocks == 1
    assert pool.allocate(1) == [child]


def test_prompt_that_begins_like_one_before_hits_what_is_still_there(monkeypatch):
    pool = make_pool(num_blocks=6)
    prompt, chain = tokens(1, 2, 3, 4, 5, 6, 7), hashes(10, 11, 12)
    table = pool.allocate(3)
    register_chain(pool, table, prompt[:6], chain)
    assert pool.match_prefix(prompt, chain, SALT).block_ids == table
    with monkeypatch.context() as patched:
        patched.setattr(pool, "_holds", lambda *_: False)
        assert pool.match_prefix(prompt, chain, SALT).block_ids == table, "nothing is looked up"

    for num_shared in (6, 4, 2, 0, 6):
        begins_alike = prompt[:num_shared] + tokens(8, 9)
        hit = pool.match_prefix(begins_alike, chain[: num_shared // 2] + hashes(99), SALT)
        assert hit.block_ids == table[: num_shared // 2]
        assert pool.match_prefix(begins_alike, chain, "other salt").block_ids == []
    assert pool.match_prefix(prompt, chain, SALT).num_unowned == 0
    pool.free(table[1:])
    assert pool.match_prefix(prompt, chain, SALT).num_unowned == 2
    pool.forget(chain[1:2])
    hit = pool.match_prefix(prompt, chain, SALT)
    assert hit.block_ids == table[:1]
    assert hit.num_unowned == 0
    # As another registration, its child is no longer one of the prompt.
    [block] = pool.allocate(1)
    number = pool.register(block, 11, hit.parent, prompt[2:4])
    hit = pool.match_prefix(prompt, chain, SALT)
    assert hit.block_ids == [table[0], block]
    assert hit.parent == number


def test_without_prefix_caching_nothing_is_hit():
    pool = make_pool(enable_prefix_caching=False)
    table = pool.allocate(1)
    pool.register(table[0], 10, SALT, tokens(1, 2))

    assert pool.match_prefix(tokens(1, 2, 3), hashes(10), SALT).block_ids == []


def test_delta_tells_what_became_findable_and_what_no_longer_is():
    pool = make_pool(num_blocks=1)
    table = pool.allocate(1)
    pool.register(table[0], 10, SALT, tokens(1, 2))
    stored = pool.take_delta()
    pool.free(table)
    freed = pool.take_delta()
    pool.allocate(1)
    removed = pool.take_delta()

    assert (list(stored.stored), list(stored.removed)) == ([10], [])
    assert (list(freed.stored), list(freed.removed)) == ([], [])
    assert (list(removed.stored), list(removed.removed)) == ([], [10])


def test_a_hash_that_comes_and_goes_within_a_step_is_not_told():
    pool = make_pool(num_blocks=1)
    for _ in range(2):
        table = pool.allocate(1)
        pool.register(table[0], 10, SALT, tokens(1, 2))
        pool.free(table)
    pool.allocate(1)

    delta = pool.take_delta()

    assert not delta.stored
    assert not delta.removed


def test_a_hash_that_goes_and_comes_back_within_a_step_is_not_told():
    pool = make_pool(num_blocks=1)
    table = pool.allocate(1)
    pool.register(table[0], 10, SALT, tokens(1, 2))
    pool.take_delta()
    pool.free(table)

    table = pool.allocate(1)
    pool.register(table[0], 10, SALT, tokens(1, 2))
    delta = pool.take_delta()

    assert not delta.stored
    assert not delta.removed


def test_statistics_add_up():
    pool = make_pool(num_blocks=4)
    table = pool.allocate(3)
    pool.register(table[0], 10, SALT, tokens(1, 2))
    pool.free(table[:2])

    stats = pool.statistics()

    assert stats.num_empty_blocks == 2
    assert stats.num_cached_blocks == 1
    assert stats.num_used_blocks == 1
