import pytest

from router.engines.cache_bounds import MAX_BLOCKS, CacheBounds, CachePace
from router.engines.connection_loss import ConnectionLost
from router.types.engine_state import CacheUpdate
from tests.fakes.fake_fleet import model_info


def bounds(**changes):
    return CacheBounds(model_info(**({"num_blocks": 100, "epoch": 7} | changes)))


def part(num_blocks, *, first=False, last=False, epoch=7):
    return CacheUpdate(
        epoch=epoch,
        sequence_number=1,
        stored=range(num_blocks),
        is_snapshot=True,
        is_first=first,
        is_last=last,
    )


def delta(num_stored=0, num_removed=0, epoch=7):
    return CacheUpdate(
        epoch=epoch, sequence_number=1, stored=range(num_stored), removed=range(num_removed)
    )


def test_snapshots_of_all_blocks_pass_again_and_again():
    one = bounds()
    for _ in range(3):
        one.check(part(60, first=True))
        one.check(part(40, last=True))
    one.check(part(0, first=True, last=True))
    one.check(delta(100, 100))


def test_snapshot_may_not_hold_more_than_the_engine_announced():
    one = bounds()
    one.check(part(60, first=True))
    with pytest.raises(ConnectionLost, match="more than its 100 blocks"):
        one.check(part(41))


@pytest.mark.parametrize(("num_stored", "num_removed"), [(101, 0), (0, 101)])
def test_change_may_not_hold_more_than_the_engine_announced(num_stored, num_removed):
    with pytest.raises(ConnectionLost, match="more than its 100 blocks"):
        bounds().check(delta(num_stored, num_removed))


@pytest.mark.parametrize("is_first", [True, False])
def test_empty_part_that_is_not_the_last_is_refused(is_first):
    with pytest.raises(ConnectionLost, match="an empty part"):
        bounds().check(part(0, first=is_first))


@pytest.mark.parametrize("update", [part(1, first=True, epoch=8), delta(1, epoch=8)])
def test_cache_of_another_start_of_the_engine_is_refused(update):
    with pytest.raises(ConnectionLost, match="epoch 8, its model 7"):
        bounds().check(update)


@pytest.mark.parametrize(
    ("announced", "kept"), [(2**31 - 1, MAX_BLOCKS), (-7, 0), (5, 5), (MAX_BLOCKS, MAX_BLOCKS)]
)
def test_announced_blocks_have_a_ceiling(announced, kept):
    assert bounds(num_blocks=announced).num_blocks == kept


def test_whole_snapshots_and_busy_engines_do_not_wait():
    pace = CachePace()
    assert not any(pace.wait(part(10_000), 100_000, 0.0) for _ in range(20))
    pace = CachePace()
    # 500 steps a second, each with a message.
    assert not any(pace.wait(delta(60, 60), 1000, n / 500) for n in range(5000))


@pytest.mark.parametrize(("update", "most_per_second"), [(delta(), 3200), (delta(16384), 7)])
def test_flood_is_taken_at_a_bounded_rate(update, most_per_second):
    pace, now, num_taken = CachePace(), 0.0, 0
    while now < 100.0:
        now += pace.wait(update, 1000, now)
        num_taken += 1
    assert 50 * most_per_second < num_taken < 110 * most_per_second
