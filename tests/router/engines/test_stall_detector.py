import pytest

from router.engines.stall_detector import StallDetector
from router.types.engine_state import EngineLoad
from tests.fakes.fake_fleet import model_info

MODEL = model_info(max_num_batched_tokens=8192)
FAST = EngineLoad(prefill_tokens_per_second=100_000.0)


def silent_for(detector, seconds):
    for _ in range(round(seconds * 4)):
        detector.tick(is_busy=True)


def test_silence_of_an_engine_with_work_is_a_stall_after_three_seconds():
    detector = StallDetector()
    silent_for(detector, 3)
    assert not detector.is_stalled(MODEL, FAST)
    silent_for(detector, 0.25)
    assert detector.is_stalled(MODEL, FAST)
    assert detector.silence == 3.25
    detector.heard()
    assert not detector.is_stalled(MODEL, FAST)


def test_idle_engine_may_be_silent():
    detector = StallDetector()
    for _ in range(1000):
        detector.tick(is_busy=False)
    assert not detector.is_stalled(MODEL, FAST)


def test_slow_steps_are_waited_for_and_forgotten_in_time():
    detector = StallDetector()
    silent_for(detector, 2)
    detector.heard()
    assert detector.limit(MODEL, FAST) == 20.0
    for _ in range(1000):
        detector.heard()
    assert detector.limit(MODEL, FAST) == 3.0


def test_step_full_of_prompt_tokens_is_waited_for_at_the_engine_s_own_rate():
    slow = EngineLoad(prefill_tokens_per_second=1024.0)
    assert StallDetector().limit(MODEL, slow) == 5 * 8.0


@pytest.mark.parametrize(("model", "load"), [(None, FAST), (MODEL, EngineLoad())])
def test_engine_that_measured_nothing_yet_has_two_minutes(model, load):
    assert StallDetector().limit(model, load) == 120.0


def test_no_rate_that_an_engine_reports_makes_its_silence_longer_than_two_minutes():
    slowest = EngineLoad(prefill_tokens_per_second=0.01)
    assert StallDetector().limit(MODEL, slowest) == 120.0
    detector = StallDetector()
    silent_for(detector, 100)
    detector.heard()
    assert detector.limit(MODEL, FAST) == 120.0
