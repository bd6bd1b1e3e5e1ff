import random

import pytest

from router.text import token_pattern
from router.text.token_pattern import TokenPattern


def spans_one_by_one(tokens, text):
    position, spans = 0, []
    while position < len(text):
        found = [token for token in tokens if text.startswith(token, position)]
        end = position + max(map(len, found), default=0)
        if found:
            spans.append((position, end))
        position = max(end, position + 1)
    return spans


@pytest.mark.parametrize("seed", range(20))
def test_leftmost_and_there_longest_tokens_are_found(seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(token_pattern, "_STRIDE", rng.choice([1, 2, 5, 1000]))
    for _ in range(30):
        tokens = {
            "".join(rng.choices("ab|.", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 8))
        }
        text = "".join(rng.choices("ab|.", k=60))
        assert list(TokenPattern(tokens).spans(text)) == spans_one_by_one(tokens, text)


def test_nothing_is_found_of_nothing():
    assert list(TokenPattern([]).spans("abc")) == []
    assert TokenPattern(["a"]).find("") is None


def test_thousands_of_tokens_that_begin_alike_are_found():
    pattern = TokenPattern([f"<unused{number}>" for number in range(6000)])

    assert list(pattern.spans("<unused<unused59>9>")) == [(7, 17)]


def test_tokens_behind_a_marker_are_passed_over():
    pattern = TokenPattern(["aa", "b"])

    assert list(pattern.spans("aa!aa!b!aab", "!")) == [(0, 2), (10, 11)]
    # What is not behind the marker is found, even if it began behind it.
    assert list(pattern.spans("!aaa", "!")) == [(2, 4)]
