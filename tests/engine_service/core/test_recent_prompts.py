import random

from engine_service.core import recent_prompts
from engine_service.core.recent_prompts import RecentPrompts, num_common_items
from tests.engine_service.core.fake_executor import tokens

SIZE = 2


def content(*token_ids):
    return tokens(*token_ids).tobytes()


def test_items_of_common_blocks_are_found():
    prompts = RecentPrompts(SIZE)
    prompts.keep("", content(1, 2, 3, 4, 5, 6, 7), ["a", "b", "c"])

    assert prompts.find("", content(1, 2, 3, 4, 5, 6, 7)) == ["a", "b", "c"]
    assert prompts.find("", content(1, 2, 3, 4, 5, 7)) == ["a", "b"]
    assert prompts.find("", content(1, 2, 3)) == ["a"]
    assert prompts.find("", content(1, 3, 3, 4)) == []
    assert prompts.find("", content(1)) == []
    assert prompts.find("", b"") == []


def test_fewer_items_than_blocks_are_all_that_is_known():
    prompts = RecentPrompts(SIZE)
    prompts.keep("", content(1, 2, 3, 4), ["a"])

    assert prompts.find("", content(1, 2, 3, 4)) == ["a"]


def test_other_context_finds_nothing():
    prompts = RecentPrompts(SIZE)
    prompts.keep("one", content(1, 2), ["a"])

    assert prompts.find("other", content(1, 2)) == []


def test_what_was_found_is_the_callers():
    prompts = RecentPrompts(SIZE)
    prompts.keep("", content(1, 2), ["a"])

    prompts.find("", content(1, 2)).append("b")

    assert prompts.find("", content(1, 2, 3, 4)) == ["a"]


def test_only_the_last_prompts_are_kept(monkeypatch):
    monkeypatch.setattr(recent_prompts, "_MAX_PROMPTS", 2)
    prompts = RecentPrompts(SIZE)
    for first in (1, 2, 1, 3):
        prompts.keep("", content(first, first), [first])

    assert [prompts.find("", content(first, first)) for first in (1, 2, 3)] == [[1], [], [3]]


def test_number_of_common_items_is_that_of_one_by_one():
    rng = random.Random(0)
    for _ in range(500):
        first = bytes(rng.choices(range(2), (9, 1), k=rng.randint(0, 24)))
        second = bytes(rng.choices(range(2), (9, 1), k=rng.randint(0, 24)))
        size = rng.randint(1, 4)
        expected = 0
        while ((end := size * (expected + 1)) <= min(len(first), len(second))) and first[
            :end
        ] == second[:end]:
            expected += 1

        assert num_common_items(first, second, size) == expected
