import asyncio

import pytest

from engine_service.core.types import StepStats
from engine_service.server.load_meter import LoadMeter
from tests.engine_service.core.fake_executor import make_info


@pytest.fixture
async def meter():
    meter = LoadMeter()
    meter.start(make_info(num_blocks=32))
    yield meter
    meter.close()


async def test_rates_are_zero_before_any_measurement(meter):
    assert (meter.load.prefill_rate, meter.load.decode_rate) == (0.0, 0.0)
    assert (meter.load.num_free_blocks, meter.load.num_blocks) == (32, 32)


async def test_pure_steps_measure_their_own_rate(meter):
    meter.update(_step(prefill=1000, seconds=0.1))
    meter.update(_step(decode=10, seconds=0.01))
    assert meter.load.prefill_rate == pytest.approx(10_000)
    assert meter.load.decode_rate == pytest.approx(1000)


async def test_decoding_in_a_mixed_step_is_not_charged_to_the_prompts(meter):
    meter.update(_step(decode=10, seconds=0.01))
    meter.update(_step(prefill=1000, decode=10, seconds=0.11))
    assert meter.load.prefill_rate == pytest.approx(10_000, rel=0.01)
    assert meter.load.decode_rate == pytest.approx(1000)


async def test_noise_cannot_make_a_small_prompt_look_free(meter):
    meter.update(_step(decode=90, seconds=0.02))
    # Quicker than decoding alone: the prompt still gets half its share by token count.
    meter.update(_step(prefill=10, decode=90, seconds=0.01))
    assert meter.load.prefill_rate == pytest.approx(20_000)


async def test_mixed_step_before_any_pure_one_is_split_by_tokens(meter):
    meter.update(_step(prefill=900, decode=100, seconds=0.1))
    assert meter.load.prefill_rate == pytest.approx(10_000)


async def test_large_step_counts_more_than_many_small_ones(meter):
    for _ in range(10):
        meter.update(_step(prefill=1, seconds=0.001))
    meter.update(_step(prefill=9990, seconds=0.99))
    assert meter.load.prefill_rate == pytest.approx(10_000, rel=0.01)


async def test_old_measurements_fade(meter):
    meter.update(_step(decode=1_000_000, seconds=1.0))
    for _ in range(100):
        meter.update(_step(decode=1000, seconds=1.0))
    assert meter.load.decode_rate == pytest.approx(1000, rel=0.1)


async def test_change_is_told_to_subscribers_and_no_more_is_not(meter):
    told = asyncio.Event()
    meter.subscribe(told.set)
    meter.update(_step(decode=1, seconds=0.01))
    assert not told.is_set()
    await asyncio.wait_for(told.wait(), 10)


async def test_drain_is_told_at_once(meter):
    told = []
    meter.subscribe(lambda: told.append(meter.load.is_draining))
    meter.drain()
    assert told == [True]


async def test_who_unsubscribed_is_not_told(meter):
    told = []
    callback = lambda: told.append(1)  # noqa: E731 (needs an identity)
    meter.subscribe(callback)
    meter.unsubscribe(callback)
    meter.drain()
    assert told == []


def _step(*, prefill=0, decode=0, seconds):
    return StepStats(num_prefill_tokens=prefill, num_decode_tokens=decode, step_seconds=seconds)
