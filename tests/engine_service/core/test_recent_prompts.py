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
    prompts.keep("", content(1, 2, 3, 4), ["a"])

    prompts.find("", content(1, 2, 3, 4)).append("b")

    assert prompts.find("", content(1, 2, 3, 4)) == ["a"]


def test_prompts_that_differ_early_are_kept_beside_each_other():
    prompts = RecentPrompts(SIZE)
    prompts.keep("", content(1, 2, 3, 4), ["a", "b"])
    prompts.keep("", content(2, 2, 3, 4), ["c", "d"])

    assert prompts.find("", content(1, 2, 3, 4)) == ["a", "b"]
    assert prompts.find("", content(2, 2, 3, 4)) == ["c", "d"]


def test_only_so_many_tokens_are_kept(monkeypatch):
    monkeypatch.setattr(recent_prompts, "_MAX_BYTES", len(content(*range(6))))
    prompts = RecentPrompts(SIZE)
    for first in (1, 2, 1, 3, 1):
        prompts.keep("", content(first, first, 9), [first])
    assert [prompts.find("", content(first, first)) for first in (1, 2, 3)] == [[1], [], [3]]

    prompts.keep("", content(4, 4, *range(4)), [4])
    prompts.keep("", content(5, 5, *range(5)), [5])

    found = [prompts.find("", content(first, first)) for first in (1, 2, 3, 4, 5)]
    assert found == [[], [], [], [4], []]


def test_short_prompts_are_not_kept(monkeypatch):
    monkeypatch.setattr(recent_prompts, "_MIN_TOKENS", 4)
    prompts = RecentPrompts(SIZE)
    for prompt in (content(1, 2, 3), content(2, 2, 3, 4)):
        prompts.keep("", prompt, ["a"])

    assert prompts.find("", content(1, 2, 3)) == []
    assert prompts.find("", content(2, 2, 3)) == []
    assert prompts.find("", content(2, 2, 3, 4)) == ["a"]


def test_number_of_common_items_is_that_of_one_by_one():
    rng = random.Random(0)
    for _ in range(500):
        first = bytes(rng.choices(range(2), (9, 1), k=rng.randint(0, 24)))
        second = bytes(rng.choices(range(2), (9, 1), k=rng.randint(0, 24)))
        size = rng.randint(1, 4)

        is_equal = [one == other for one, other in zip(first, second, strict=False)]
        expected = [*is_equal, False].index(False) // size
        assert num_common_items(first, second, size) == expected
