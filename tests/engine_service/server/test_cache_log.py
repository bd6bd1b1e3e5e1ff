import asyncio
from array import array

import pytest

from engine_service.core.types import CacheDelta
from engine_service.errors import EngineFailed, SlowReader
from engine_service.server.cache_log import CacheLog, NumberedDelta, SnapshotPart


async def test_epochs_of_two_starts_differ_and_are_not_zero():
    epochs = {CacheLog(100).epoch for _ in range(50)}
    assert len(epochs) == 50
    assert 0 not in epochs


async def test_large_snapshot_comes_in_parts_of_one_moment():
    log = CacheLog(100, max_hashes_per_message=4)
    log.append(_delta(stored=range(4)))
    log.append(_delta(stored=range(4, 8)))
    log.append(_delta(stored=[8]))
    watch = log.watch(0, 0)
    first = await anext(watch)
    log.append(_delta(stored=[99], removed=[0]))
    rest = [await anext(watch) for _ in range(2)]
    parts = [first, *rest]
    assert all(isinstance(part, SnapshotPart) for part in parts)
    assert [len(part.hashes) for part in parts] == [4, 4, 1]
    assert [part.number for part in parts] == [1, 2, 3]
    assert [(part.is_first, part.is_last) for part in parts] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert {part.sequence_number for part in parts} == {3}
    assert sorted(block for part in parts for block in part.hashes) == list(range(9))
    assert (await anext(watch)).sequence_number == 4


async def test_change_too_large_for_a_message_becomes_several():
    log = CacheLog(1000, max_hashes_per_message=4)
    watch = log.watch(log.epoch, 0)
    log.append(_delta(stored=range(6), removed=range(10, 13)))
    changes = [await anext(watch) for _ in range(log.sequence_number)]
    assert all(isinstance(change, NumberedDelta) for change in changes)
    assert [change.sequence_number for change in changes] == [1, 2, 3]
    assert [list(change.delta.stored) for change in changes] == [[0, 1, 2, 3], [4, 5], []]
    assert [list(change.delta.removed) for change in changes] == [[], [], [10, 11, 12]]


async def test_watcher_who_was_away_too_long_gets_a_snapshot():
    log = CacheLog(max_history_hashes=100)
    for number in range(10):
        log.append(_delta(stored=[number]))
    change = await anext(log.watch(log.epoch, 1))
    assert isinstance(change, SnapshotPart)
    assert sorted(change.hashes) == list(range(10))


async def test_watcher_from_the_future_gets_a_snapshot():
    log = CacheLog(100)
    assert isinstance(await anext(log.watch(log.epoch, 7)), SnapshotPart)


async def test_watcher_overtaken_by_the_history_is_cut_off():
    log = CacheLog(max_history_hashes=100)
    watch = log.watch(log.epoch, 0)
    log.append(_delta(stored=[0]))
    assert (await anext(watch)).sequence_number == 1
    for number in range(1, 10):
        log.append(_delta(stored=[number]))
    with pytest.raises(SlowReader, match="change 2 of the cache"):
        await anext(watch)


async def test_failure_reaches_waiting_watchers_and_later_ones():
    log = CacheLog(100)
    watch = log.watch(log.epoch, 0)
    waiting = asyncio.ensure_future(anext(watch))
    log.append(_delta(stored=[1]))
    await waiting
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    log.fail(EngineFailed("gone"))
    with pytest.raises(EngineFailed):
        await waiting
    late = log.watch(0, 0)
    assert isinstance(await anext(late), SnapshotPart)
    with pytest.raises(EngineFailed):
        await anext(late)


async def test_watchers_after_a_recovery_go_on_and_those_before_it_do_not():
    log = CacheLog(100)
    log.append(_delta(stored=[1]))
    early = log.watch(log.epoch, 0)
    await anext(early)
    log.fail(EngineFailed("frozen"))
    log.recover()
    log.append(_delta(stored=[2]))
    later = log.watch(log.epoch, 1)
    assert (await anext(later)).sequence_number == 2
    waiting = asyncio.ensure_future(anext(later))
    await asyncio.sleep(0)
    # It reads the rest first.
    assert (await anext(early)).sequence_number == 2
    with pytest.raises(EngineFailed):
        await anext(early)
    log.append(_delta(removed=[1]))
    assert (await waiting).sequence_number == 3


def _delta(*, stored=(), removed=()):
    return CacheDelta(stored=array("Q", stored), removed=array("Q", removed))
