from types import ModuleType

import pytest

from examples.guide.common import QUESTIONS, chat
from examples.guide.step_01_forward import load
from examples.guide.step_05_continuous_batching import Engine
from examples.guide.step_07_preemption import PreemptingEngine
from examples.guide.trace import Trace

MODEL = load()


def running(exercise: ModuleType, num_computed: list[int]) -> PreemptingEngine:
    """Returns an engine that runs requests of which so many tokens are computed."""
    engine: PreemptingEngine = exercise.ThriftyEngine(MODEL, 64)
    for count in num_computed:
        engine.add([5] * (count + 1), 4)
        engine.start(engine.waiting.popleft())
        engine.running[-1].num_computed = count
    return engine


@pytest.mark.parametrize(
    ("num_computed", "expected"),
    [([9, 7, 8], 1), ([1, 7, 8], 1), ([9, 7, 7, 8], 2), ([9, 8, 7], 2), ([9], 0)],
)
def test_the_cheapest_but_the_oldest_is_taken(
    exercise: ModuleType, num_computed: list[int], expected: int
) -> None:
    assert running(exercise, num_computed).victim().request_id == expected


def test_age_does_not_depend_on_when_a_request_was_started(exercise: ModuleType) -> None:
    engine = running(exercise, [3, 7, 7, 8])
    engine.running.append(engine.running.pop(0))  # The oldest was preempted, and came back last.
    engine.running.append(engine.running.pop(0))

    assert engine.victim().request_id == 2


def test_those_who_wait_stay_in_order_of_age(exercise: ModuleType) -> None:
    engine = running(exercise, [9, 8, 7, 6])
    engine.add([5], 4)
    second, third = engine.running[1:3]

    engine.preempt(second)
    engine.preempt(third)

    assert [request.request_id for request in engine.waiting] == [1, 2, 4]
    assert [request.request_id for request in engine.running] == [0, 3]
    assert (third.num_computed, third.block_table) == (0, [])
    assert len(third.token_ids) == 8


def test_answers_stay_the_same(exercise: ModuleType) -> None:
    traces = [Trace(Engine(MODEL, 64)), Trace(exercise.ThriftyEngine(MODEL, 10))]
    for trace in traces:
        for question in QUESTIONS[:3] * 2:
            trace.add(chat(question))
        trace.run()

    assert traces[1].answers == traces[0].answers
