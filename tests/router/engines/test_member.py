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


async def test_confirmed_reservations_end_in_their_order(index, monkeypatch):
    monkeypatch.setattr(fleet_member, "_CONFIRM_SECONDS", 0.02)
    one = member("a", index)
    released = asyncio.Queue()
    monkeypatch.setattr(index, "release", lambda reservation: released.put_nowait(reservation))
    reservations = [index.reserve("a", [block]) for block in range(4)]

    one.confirm(reservations[0])
    await asyncio.sleep(0.01)
    one.confirm(reservations[1])
    one.confirm(reservations[2])
    async with asyncio.timeout(10):
        assert [await released.get() for _ in range(3)] == reservations[:3]

    # The timer starts again.
    one.confirm(reservations[3])
    async with asyncio.timeout(10):
        assert await released.get() is reservations[3]
