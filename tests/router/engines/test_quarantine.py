import pytest

from router.engines import quarantine as module
from router.engines.quarantine import Quarantine


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_wait_doubles_up_to_a_minute_while_it_is_for_soon_after_the_last(clock):
    quarantine = Quarantine()
    waits = []
    for _ in range(6):
        waits.append(quarantine.begin())
        quarantine.end()
        clock.now += 59

    assert waits == [5, 10, 20, 40, 60, 60]


def test_wait_is_short_again_after_a_good_minute(clock):
    quarantine = Quarantine()
    for _ in range(3):
        quarantine.begin()
        quarantine.end()
    clock.now += 61

    assert quarantine.begin() == 5


def test_wait_doubles_however_long_the_engine_stays_quarantined(clock):
    quarantine = Quarantine()
    quarantine.begin()
    clock.now += 1000

    assert quarantine.begin() == 10
