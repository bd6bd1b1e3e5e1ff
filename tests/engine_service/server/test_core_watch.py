import pytest

from engine_service.server.core_watch import TICK_SECONDS, CoreWatch

MIN_SECONDS = 5.0


def tick(watch, seconds, *, num_tokens=0, tokens_per_second=100.0):
    """Lets a time pass; it is counted in ticks and not looked up on any clock."""
    for _ in range(round(seconds / TICK_SECONDS)):
        watch.tick(num_tokens=num_tokens, tokens_per_second=tokens_per_second)


@pytest.fixture
def watch():
    return CoreWatch(MIN_SECONDS)


def test_idle_core_is_frozen_past_the_least_silence(watch):
    tick(watch, MIN_SECONDS)
    assert not watch.is_frozen

    tick(watch, TICK_SECONDS)
    assert watch.is_frozen
    assert watch.silence == MIN_SECONDS + TICK_SECONDS


def test_any_sign_of_life_ends_the_silence(watch):
    for _ in range(10):
        tick(watch, MIN_SECONDS)
        watch.heard(0.0)
    assert watch.silence == 0.0
    assert not watch.is_frozen

    tick(watch, MIN_SECONDS + 1)
    assert watch.is_frozen
    watch.heard(0.0)
    assert not watch.is_frozen


def test_long_steps_of_late_make_a_longer_silence_harmless_and_are_forgotten(watch):
    watch.heard(2.0)
    assert watch.limit == pytest.approx(20.0)

    # Idle signs of life are no steps, and forget none.
    for _ in range(5000):
        watch.heard(0.0)
    assert watch.limit == pytest.approx(20.0)

    for _ in range(5000):
        watch.heard(0.001)
    assert watch.limit == MIN_SECONDS


def test_step_in_which_the_core_stood_still_extends_nothing(watch):
    tick(watch, MIN_SECONDS + 1)
    watch.heard(MIN_SECONDS + 1)
    assert watch.limit == MIN_SECONDS


def test_work_at_hand_makes_a_longer_silence_harmless_until_it_is_done(watch):
    # 300 tokens at 100 a second, ten times.
    tick(watch, 30.0, num_tokens=300)
    assert not watch.is_frozen
    tick(watch, TICK_SECONDS, num_tokens=300)
    assert watch.is_frozen

    watch.heard(0.0)
    assert watch.limit == MIN_SECONDS


def test_work_that_comes_after_the_step_has_begun_buys_no_time(watch):
    tick(watch, 1.0)
    tick(watch, MIN_SECONDS, num_tokens=1_000_000)
    assert watch.limit == MIN_SECONDS
    assert watch.is_frozen


def test_first_step_with_prompt_tokens_may_compile_kernels(watch):
    tick(watch, 0.5, tokens_per_second=0.0)
    assert watch.limit == MIN_SECONDS

    tick(watch, 119.5, num_tokens=1, tokens_per_second=0.0)
    assert not watch.is_frozen
    tick(watch, TICK_SECONDS, num_tokens=1, tokens_per_second=0.0)
    assert watch.is_frozen
