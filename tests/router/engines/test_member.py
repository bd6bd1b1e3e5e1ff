import asyncio

import pytest

from router.engines import member as fleet_member
from router.engines.member import FleetMember
from router.placement.prefix_index import SLICE_BLOCKS, PrefixIndex
from router.types.engine_state import CacheUpdate
from tests.fakes.fake_fleet import model_info


class RecordingIndex(PrefixIndex):
    """Notes whose slices it takes in, in their order."""

    def __init__(self):
        super().__init__()
        self.slices = []

    def apply_in_slices(self, engine, update):
        for follows in super().apply_in_slices(engine, update):
            self.slices.append(engine)
            yield follows


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    """One slice is a turn."""
    monkeypatch.setattr(fleet_member, "_TURN_SECONDS", -1.0)


@pytest.fixture
def index():
    return RecordingIndex()


def member(engine, index):
    member = FleetMember(engine, index, lambda member, info: "", lambda: None)
    assert not member.check_model(model_info(num_blocks=10 * SLICE_BLOCKS, epoch=1))
    return member


def snapshot(num_blocks, *, first_block=0):
    return CacheUpdate(
        epoch=1,
        sequence_number=5,
        stored=range(first_block, first_block + num_blocks),
        is_snapshot=True,
        is_first=True,
        is_last=True,
    )


async def test_slices_of_two_snapshots_do_not_share_turns_of_the_event_loop(index):
    a, b = member("a", index), member("b", index)

    done = await asyncio.gather(
        a.cache_changed(snapshot(3 * SLICE_BLOCKS)), b.cache_changed(snapshot(2 * SLICE_BLOCKS))
    )

    assert done == [True, True]
    assert index.slices == ["a", "a", "a", "b", "b"]
    assert index.num_blocks("a") == 3 * SLICE_BLOCKS


async def test_small_change_does_not_wait_for_a_snapshot(index):
    a, b = member("a", index), member("b", index)
    large = asyncio.ensure_future(a.cache_changed(snapshot(4 * SLICE_BLOCKS)))
    await asyncio.sleep(0)

    assert await b.cache_changed(snapshot(5))

    assert not large.done()
    assert await large


async def test_snapshot_that_is_cancelled_lets_the_next_one_in(index):
    a, b = member("a", index), member("b", index)
    cancelled = asyncio.ensure_future(a.cache_changed(snapshot(4 * SLICE_BLOCKS)))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(b.cache_changed(snapshot(2 * SLICE_BLOCKS)))
    await asyncio.sleep(0)

    cancelled.cancel()

    assert await asyncio.wait_for(waiting, 10)
    # What was not taken in to its end is asked for again.
    assert index.position("a") == (0, 0)
