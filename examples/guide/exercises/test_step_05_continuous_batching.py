from types import ModuleType

import pytest

from examples.guide.common import QUESTIONS, chat, text_with_facts
from examples.guide.step_01_forward import load
from examples.guide.step_05_continuous_batching import Engine
from examples.guide.trace import Trace

MODEL = load()


def shares(engine: Engine) -> dict[int, int]:
    """Runs a step without computing anything; returns what each request would have got."""
    while engine.waiting:
        engine.start(engine.waiting.popleft())
    rows = engine.schedule()
    for request, count in rows:
        assert len(request.block_table) == engine.cache.blocks_for(request.num_computed + count)
        request.num_computed += count
        if not request.num_uncomputed:
            request.token_ids.append(5)
    assert len({request.request_id for request, _ in rows}) == len(rows)
    assert all(count for _, count in rows)
    return {request.request_id: count for request, count in rows}


@pytest.fixture
def engine(exercise: ModuleType) -> Engine:
    fair: Engine = exercise.FairEngine(MODEL, 64, budget=20)
    return fair


def test_a_prompt_alone_gets_the_whole_budget(engine: Engine) -> None:
    engine.add([5] * 45, 4)

    assert [shares(engine) for _ in range(4)] == [{0: 20}, {0: 20}, {0: 5}, {0: 1}]


def test_the_oldest_gets_half_and_the_shortest_the_rest(engine: Engine) -> None:
    for length in (60, 30, 8, 8):
        engine.add([5] * length, 4)

    assert shares(engine) == {0: 10, 2: 8, 3: 2}
    # The first question decodes. Of the 19 tokens left, 10 are the oldest's.
    assert shares(engine) == {2: 1, 0: 10, 3: 6, 1: 3}
    assert shares(engine) == {2: 1, 3: 1, 0: 9, 1: 9}


def test_what_others_do_not_need_goes_to_the_oldest(engine: Engine) -> None:
    engine.add([5] * 60, 4)
    engine.add([5] * 3, 4)

    assert shares(engine) == {0: 17, 1: 3}


def test_what_the_oldest_does_not_need_goes_to_others(engine: Engine) -> None:
    engine.add([5] * 4, 4)
    engine.add([5] * 60, 4)

    assert shares(engine) == {0: 4, 1: 16}


def test_answers_stay_the_same_and_a_short_question_is_answered_first(exercise: ModuleType) -> None:
    prompts = [chat(f"{text_with_facts(12)}\n\nWhat is Mara's code?"), chat(QUESTIONS[5])]
    traces = [Trace(kind(MODEL, 64, budget=32)) for kind in (Engine, exercise.FairEngine)]
    for trace in traces:
        for prompt in prompts:
            trace.add(prompt)
        trace.run()

    plain, fair = traces
    assert fair.answers == plain.answers
    assert 1 in fair.given[0]
    assert 1 not in plain.given[0]
