import random

import pytest

from router.placement.prefix_index import PrefixIndex
from router.types.engine_state import CacheUpdate


def snapshot(*blocks, epoch=1, number=0, first=True, last=True, part=0):
    return CacheUpdate(
        epoch=epoch,
        sequence_number=number,
        stored=blocks,
        is_snapshot=True,
        is_first=first,
        is_last=last,
        part_number=part,
    )


def delta(number, stored=(), removed=(), epoch=1):
    return CacheUpdate(epoch=epoch, sequence_number=number, stored=stored, removed=removed)


def index_of(**engines):
    index = PrefixIndex()
    for name, blocks in engines.items():
        index.add_engine(name, max_blocks=1000, epoch=1)
        assert index.apply(name, snapshot(*blocks))
    return index


def sweep_all(index):
    while index.sweep():
        pass


def test_match_counts_leading_blocks_of_each_engine():
    index = index_of(a=[1, 2, 3], b=[1, 3], c=[2, 3], d=[1, 2, 3, 4])

    assert index.match([1, 2, 3, 9]) == {"a": 3, "b": 1, "d": 3}


def test_match_of_no_blocks_is_empty():
    assert index_of(a=[1]).match([]) == {}


def test_match_beyond_thirty_two_engines_finds_each():
    index = index_of(**{f"e{number}": [1, 100 + number] for number in range(64)})

    assert index.match([1, 163]) == {f"e{number}": 1 for number in range(63)} | {"e63": 2}


def test_delta_stores_and_removes():
    index = index_of(a=[1, 2])

    assert index.apply("a", delta(1, stored=[3], removed=[1]))

    assert index.match([1]) == {}
    assert index.match([2, 3]) == {"a": 2}
    assert index.position("a") == (1, 1)


def test_removal_by_one_engine_leaves_the_other_s_block():
    index = index_of(a=[1], b=[1])

    index.apply("a", delta(1, removed=[1]))

    assert index.match([1]) == {"b": 1}


def test_gap_is_refused_counted_and_repaired_by_a_snapshot():
    index = index_of(a=[1])

    assert not index.apply("a", delta(2, stored=[2]))
    assert index.position("a") == (0, 0)
    assert index.match([1, 2]) == {"a": 1}
    assert index.apply("a", snapshot(2, number=2))
    assert index.apply("a", delta(3, stored=[3]))

    assert index.match([2, 3]) == {"a": 2}
    assert index.match([1]) == {}
    assert index.statistics().num_gaps == 1


def test_delta_of_another_epoch_is_refused():
    index = index_of(a=[1])

    assert not index.apply("a", delta(1, stored=[2], epoch=2))


def test_delta_before_any_snapshot_is_refused():
    index = PrefixIndex()
    index.add_engine("a", max_blocks=10, epoch=1)

    assert not index.apply("a", delta(1, stored=[2]))


def test_repeated_delta_changes_nothing():
    index = index_of(a=[])
    index.apply("a", delta(1, stored=[1]))
    index.apply("a", delta(2, removed=[1]))

    assert index.apply("a", delta(1, stored=[1]))

    assert index.match([1]) == {}


def test_snapshot_in_parts_is_complete_with_the_last():
    index = index_of(a=[9])

    assert index.apply("a", snapshot(1, number=7, last=False))
    assert index.position("a") == (0, 0)
    assert index.apply("a", snapshot(2, number=7, first=False))

    assert index.position("a") == (1, 7)
    assert index.match([1, 2]) == {"a": 2}
    assert index.match([9]) == {}


@pytest.mark.parametrize(
    "parts", [[1, 3], [1, 1], [1, 2, 2], [1, 2, 1], [2], [1, 0], [0, 1]], ids=str
)
def test_part_of_a_snapshot_that_is_not_the_next_one_is_a_gap(parts):
    index = index_of(a=[])
    *before, wrong = parts
    for part in before:
        message = snapshot(part, number=7, first=part == before[0], last=False, part=part)
        assert index.apply("a", message)

    assert not index.apply("a", snapshot(9, number=7, first=False, part=wrong))

    assert index.position("a") == (0, 0)
    assert index.statistics().num_gaps == 1
    assert index.apply("a", snapshot(1, number=7, last=False, part=1))
    assert index.apply("a", snapshot(2, number=7, first=False, part=2))
    assert index.position("a") == (1, 7)


def test_snapshot_that_begins_again_counts_its_parts_anew():
    index = index_of(a=[])
    for part in (1, 2):
        index.apply("a", snapshot(part, number=7, first=part == 1, last=False, part=part))

    assert index.apply("a", snapshot(3, number=8, last=False, part=1))
    assert index.apply("a", snapshot(4, number=8, first=False, part=2))

    assert index.position("a") == (1, 8)
    assert index.match([1]) == {}


def test_middle_of_another_snapshot_is_refused():
    index = index_of(a=[])
    index.apply("a", snapshot(1, number=7, last=False))

    assert not index.apply("a", snapshot(2, number=8, first=False))


def test_new_epoch_forgets_the_old_one_at_once():
    index = index_of(a=[1, 2], b=[1])

    index.add_engine("a", max_blocks=10, epoch=2)

    assert index.match([1, 2]) == {"b": 1}
    assert index.position("a") == (0, 0)


def test_same_epoch_keeps_what_is_held():
    index = index_of(a=[1, 2])

    index.add_engine("a", max_blocks=10, epoch=1)

    assert index.match([1, 2]) == {"a": 2}


def test_removed_engine_leaves_nothing_and_its_bit_is_reused():
    index = index_of(a=[1, 2], b=[2])
    index.reserve("a", [7])

    index.remove_engine("a")
    index.add_engine("c", max_blocks=10, epoch=1)

    assert index.match([1]) == {}
    assert index.match([2]) == {"b": 1}
    sweep_all(index)
    assert index.statistics().num_blocks == 1


def test_reserved_blocks_are_found_until_released():
    index = index_of(a=[1])

    reservation = index.reserve("a", [1, 2, 3])
    during = index.match([1, 2, 3])
    index.release(reservation)

    assert during == {"a": 3}
    assert index.match([1, 2, 3]) == {"a": 1}
    assert index.statistics().num_speculative_entries == 0


def test_confirmed_reservation_stays_after_release():
    index = index_of(a=[])
    reservation = index.reserve("a", [1, 2])
    index.apply("a", delta(1, stored=[1]))

    index.release(reservation)

    assert index.match([1, 2]) == {"a": 1}


def test_blocks_that_two_requests_reserved_stay_for_the_second():
    index = index_of(a=[])
    first, second = index.reserve("a", [1]), index.reserve("a", [1])

    index.release(first)
    between = index.match([1])
    index.release(second)

    assert between == {"a": 1}
    assert index.match([1]) == {}


def test_release_after_the_engine_left_is_harmless():
    index = index_of(a=[])
    reservation = index.reserve("a", [1])
    index.remove_engine("a")

    index.release(reservation)

    assert index.statistics().num_blocks == 0


def test_release_after_a_restart_leaves_newer_reservations_alone():
    index = index_of(a=[])
    older = index.reserve("a", [1])
    index.add_engine("a", max_blocks=10, epoch=2)
    index.reserve("a", [1])

    index.release(older)

    assert index.match([1]) == {"a": 1}


def test_engine_cannot_enter_more_blocks_than_it_has():
    index = PrefixIndex()
    index.add_engine("a", max_blocks=2, epoch=1)

    index.apply("a", snapshot(1, 2, 3))

    assert index.num_blocks("a") == 2
    assert index.statistics().num_rejected_entries == 1


def test_block_confirmed_evicted_and_reserved_again_keeps_its_newer_reservation():
    index = index_of(a=[])
    older = index.reserve("a", [1])
    index.apply("a", delta(1, stored=[1]))
    index.apply("a", delta(2, removed=[1]))
    index.reserve("a", [1])

    index.release(older)

    assert index.match([1]) == {"a": 1}


def test_reservation_outlives_a_snapshot_of_the_same_epoch():
    index = index_of(a=[1])
    index.reserve("a", [1, 2])

    index.apply("a", snapshot(3, number=5))

    assert index.match([1, 2]) == {"a": 2}


def test_snapshot_of_another_epoch_voids_reservations():
    index = index_of(a=[1])
    reservation = index.reserve("a", [1, 2])

    index.apply("a", snapshot(1, epoch=2))
    index.release(reservation)

    assert index.match([1, 2]) == {"a": 1}


def test_blocks_held_behind_reserved_ones_count():
    index = index_of(a=[3, 4])

    index.reserve("a", [1, 2])

    assert index.match([1, 2, 3, 4, 5]) == {"a": 4}


def test_large_message_is_taken_in_slices_and_counts_at_its_end():
    index = index_of(a=[])
    message = delta(1, stored=range(5000))

    slices = index.apply_in_slices("a", message)
    next(slices)
    between = index.position("a")
    rest = list(slices)

    assert between == (1, 0)
    assert rest == [True, True]
    assert index.position("a") == (1, 1)
    assert index.num_blocks("a") == 1000


def test_engine_that_restarts_between_slices_takes_no_more_of_the_message():
    index = index_of(a=[])
    slices = index.apply_in_slices("a", delta(1, stored=range(5000)))
    next(slices)

    index.add_engine("a", max_blocks=10, epoch=2)

    assert list(slices) == [False]
    assert index.num_blocks("a") == 0


def test_chunk_after_a_refused_message_does_not_complete_the_snapshot():
    index = index_of(a=[])
    index.apply("a", snapshot(1, number=7, last=False))
    index.apply("a", delta(8, stored=[3]))

    assert not index.apply("a", snapshot(2, number=7, first=False))

    assert index.position("a") == (0, 0)


def test_sweep_works_in_parts_and_takes_back_the_bytes():
    blocks = [number << 48 for number in range(1000)]
    index = index_of(a=blocks, b=[1])
    before = index.statistics().num_bytes
    index.remove_engine("a")

    assert index.sweep(max_blocks=1)
    assert index.statistics().num_blocks > 1
    sweep_all(index)

    assert index.statistics().num_blocks == 1
    assert index.statistics().num_bytes < before / 2


def test_bit_of_a_removed_engine_waits_for_its_sweep():
    index = index_of(a=[1, 2])
    names = [f"e{number}" for number in range(100)]

    index.remove_engine("a")
    for name in names:
        index.add_engine(name, max_blocks=10, epoch=1)

    assert index.match([1, 2]) == {}


def test_random_events_agree_with_plain_sets():
    rng = random.Random(7)
    names = ["a", "b", "c"]
    index = index_of(a=[], b=[], c=[])
    held = {name: set() for name in names}
    reserved = []
    numbers = dict.fromkeys(names, 0)
    for _ in range(2000):
        name = rng.choice(names)
        blocks = rng.sample(range(12), rng.randrange(1, 5))
        match rng.randrange(5):
            case 0:
                numbers[name] += 1
                index.apply(name, delta(numbers[name], stored=blocks))
                held[name] |= set(blocks)
            case 1:
                numbers[name] += 1
                index.apply(name, delta(numbers[name], removed=blocks))
                held[name] -= set(blocks)
            case 2:
                index.apply(name, snapshot(*blocks, number=numbers[name]))
                held[name] = set(blocks)
            case 3:
                reserved.append((name, index.reserve(name, blocks)))
            case 4 if reserved:
                index.release(reserved.pop(rng.randrange(len(reserved)))[1])
        for block in range(12):
            certain = {n for n in names if block in held[n]}
            possible = certain | {n for n, r in reserved if block in r.hashes}
            assert certain <= set(index.match([block])) <= possible
    while reserved:
        index.release(reserved.pop()[1])

    sweep_all(index)

    for block in range(12):
        assert set(index.match([block])) == {n for n in names if block in held[n]}
    assert index.statistics().num_blocks == len(set().union(*held.values()))
