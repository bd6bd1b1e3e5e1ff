"""Which sequences share first blocks, against a search through all divisions."""

import random

import pytest

from engine_service.core import prefix_groups
from engine_service.core.prefix_groups import PrefixGroups, best_groups
from engine_service.core.types import MAX_PREFIX_GROUPS

BLOCK_SIZE = 4


@pytest.fixture(autouse=True)
def anything_is_worth_it(monkeypatch):
    monkeypatch.setattr(prefix_groups, "_MIN_SAVED_TOKENS", 1)
    monkeypatch.setattr(prefix_groups, "_MIN_PREFIX_TOKENS", 1)


def found(groups):
    """Returns {slots: shared blocks}."""
    packed = list(groups.find() or ())
    result = {}
    while packed:
        size, num_tokens = packed[:2]
        result[frozenset(packed[2 : 2 + size])] = num_tokens // BLOCK_SIZE
        packed = packed[2 + size :]
    return result


def groups_of(*tables):
    groups = PrefixGroups(BLOCK_SIZE)
    for slot, table in enumerate(tables):
        groups.add(slot, table)
    return groups


def test_sequences_that_share_nothing_are_in_no_group():
    assert groups_of([1, 2], [3], [4, 5]).find() is None
    assert groups_of().find() is None
    assert groups_of([1, 2, 3]).find() is None


def test_groups_share_all_that_their_members_share():
    groups = groups_of([1, 2, 3, 10], [7, 8, 11], [1, 2, 3, 12], [7, 8, 9, 13], [1, 2, 4, 14], [20])

    assert found(groups) == {frozenset({0, 2, 4}): 2, frozenset({1, 3}): 2}


def test_a_long_prefix_of_some_is_preferred_to_a_short_one_of_all():
    long = list(range(2, 50))
    groups = groups_of([1, *long, 60], [1, 70], [1, *long, 61], [1, 71], [1, 72])

    assert found(groups) == {frozenset({0, 2}): 49, frozenset({1, 3, 4}): 1}


def test_what_a_sequence_gets_later_does_not_matter():
    table = [1, 2, 3]
    groups = groups_of(table, [1, 2, 4])
    table += [5, 6]
    groups.add(2, [1, 2, 3, 5, 7])

    assert found(groups) == {frozenset({0, 1, 2}): 2}
    groups.remove(1)
    assert found(groups) == {frozenset({0, 2}): 3}


def test_only_the_groups_that_save_most_are_taken():
    num_groups = MAX_PREFIX_GROUPS + 3
    tables = [[1000 * group + block for block in range(group + 1)] for group in range(num_groups)]
    groups = groups_of(*([*table, 100_000 + copy] for copy in range(2) for table in tables))

    sizes = sorted(found(groups).values())

    assert sizes == list(range(num_groups - MAX_PREFIX_GROUPS + 1, num_groups + 1))


def test_too_little_is_not_worth_it(monkeypatch):
    monkeypatch.setattr(prefix_groups, "_MIN_SAVED_TOKENS", 3 * BLOCK_SIZE)
    groups = groups_of([1, 2, 3], [1, 2, 4])
    assert groups.find() is None

    groups.add(2, [1, 2, 5])
    assert found(groups) == {frozenset({0, 1, 2}): 2}


def test_short_prefixes_are_not_shared_and_hide_no_longer_ones(monkeypatch):
    monkeypatch.setattr(prefix_groups, "_MIN_PREFIX_TOKENS", 3 * BLOCK_SIZE)
    assert groups_of([1, 2, 3], [1, 2, 4]).find() is None

    # All share more together than the pairs do, but too short a prefix.
    groups = groups_of(*([1, 2, pair, 10 + copy] for pair in (3, 4, 5) for copy in (0, 1)))
    assert found(groups) == {frozenset({0, 1}): 3, frozenset({2, 3}): 3, frozenset({4, 5}): 3}


def most_saved(num_common):
    """The most blocks that groups of neighbours save."""
    saved = [0]
    for end in range(1, len(num_common) + 1):
        saved.append(
            max(
                saved[start] + (end - start - 1) * min(num_common[start + 1 : end], default=0)
                for start in range(end)
            )
        )
    return saved[-1]


def test_little_is_lost_to_the_best_division():
    ratios = []
    for seed in range(500):
        rng = random.Random(seed)
        num_common = [0, *(rng.choice([0, 0, 1, 2, 3, 5]) for _ in range(rng.randint(0, 9)))]
        groups = best_groups(num_common)
        members = [member for group in groups for member in group.members]
        assert len(members) == len(set(members))
        for group in groups:
            assert len(group.members) > 1
            first, last = group.members[0], group.members[-1]
            assert min(num_common[first + 1 : last + 1]) >= group.num_blocks > 0
        most = most_saved(num_common)
        if most:
            ratios.append(sum(group.num_saved_blocks for group in groups) / most)
    assert min(ratios) > 0.8
    assert sum(ratios) / len(ratios) > 0.99


def test_coming_and_going_leaves_what_a_new_start_finds():
    rng = random.Random(3)
    groups, tables, next_block = PrefixGroups(BLOCK_SIZE), {}, 1000
    for _ in range(400):
        if tables and rng.random() < 0.45:
            slot = rng.choice(sorted(tables))
            groups.remove(slot)
            del tables[slot]
        else:
            slot = next(slot for slot in range(300) if slot not in tables)
            before = rng.choice([[], *tables.values()])
            next_block += 5
            own = range(next_block, next_block + rng.randint(1, 4))
            tables[slot] = before[: rng.randint(0, len(before))] + list(own)
            groups.add(slot, tables[slot])
        anew = PrefixGroups(BLOCK_SIZE)
        for slot, table in tables.items():
            anew.add(slot, table)
        assert found(groups) == found(anew)
