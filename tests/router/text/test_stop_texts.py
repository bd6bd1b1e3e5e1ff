"""Stop texts against a reference that looks at the whole text at once."""

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.wire.limits import MAX_STOP_CHARACTERS
from router.text.stop_texts import StopSearch, StopTexts


def cut(text, stops, *, is_included=False, first_end=0):
    """Returns text and stop by the definition: the first end, and of equal ends the longest."""
    ends = [
        (end, start, text[start:end])
        for start, end in itertools.combinations(range(len(text) + 1), 2)
        if text[start:end] in stops and end >= first_end
    ]
    if not ends:
        return text, None
    end, start, stop = min(ends)
    return text[: end if is_included else start], stop


def search(pieces, stops, *, is_included=False, first_end=0):
    """Returns what a search gives out piece by piece, and checks that it holds back the least."""
    found = StopSearch(StopTexts(stops), is_included=is_included)
    given_out, text = "", ""
    for piece in pieces:
        text += piece
        given_out += found.push(piece, may_end=len(text) >= first_end)
        if found.found is not None:
            return given_out, found.found
        held_back = text[len(given_out) :]
        assert text == given_out + held_back
        could_begin = [
            length
            for length in range(1, len(text) + 1)
            if any(stop.startswith(text[-length:]) for stop in stops)
        ]
        assert len(held_back) == (0 if is_included else max(could_begin, default=0))
    return given_out + found.flush(), None


@given(
    stops=st.sets(st.text("ab\u00e9", min_size=1, max_size=5), min_size=1, max_size=6),
    pieces=st.lists(st.text("ab\u00e9c", max_size=4), max_size=10),
    is_included=st.booleans(),
)
def test_any_pieces_end_where_the_whole_text_does(stops, pieces, is_included):
    # The whole of a piece that completes two stop texts ends with the first of them.
    expected = cut("".join(pieces), stops, is_included=is_included)

    assert search(pieces, stops, is_included=is_included) == expected


@given(
    stops=st.sets(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5),
    text=st.text("abc", max_size=20),
    first_end=st.integers(0, 20),
)
def test_stops_that_end_too_early_are_text(stops, text, first_end):
    expected = cut(text, stops, first_end=first_end)

    assert search(list(text), stops, first_end=first_end) == expected


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", {"two", "wo"}, ("one ", "two")),
        ("abcd", {"abcde", "bc"}, ("a", "bc")),
        ("aaab", {"aab"}, ("a", "aab")),
        ("end", {"end"}, ("", "end")),
        ("<|e<|end|>", {"<|end|>"}, ("<|e", "<|end|>")),
        ("\U0001f600\U0001f601", {"\U0001f601"}, ("\U0001f600", "\U0001f601")),
    ],
)
def test_first_complete_one_wins_and_of_those_the_longest(text, stops, expected):
    assert search([text], stops) == expected
    assert search(list(text), stops) == expected


def test_text_without_any_beginning_of_a_stop_is_never_held_back():
    found = StopSearch(StopTexts(["stop"]))

    assert [found.push(piece) for piece in ("a", "no", "xs", "tx")] == ["a", "no", "x", "stx"]


@pytest.mark.parametrize(
    "stops",
    [
        ["a" * length for length in range(1, 181)],
        ["a" * length + "b" for length in range(180)],
        [chr(97 + i // 26) + chr(97 + i % 26) + "a" * 14 for i in range(1024 // 2)],
        ["ab" * 256 + chr(1000 + i) for i in range(31)],
    ],
    ids=["runs", "runs-and-end", "many", "twins"],
)
def test_steps_and_memory_of_hostile_stops_are_bounded(stops):
    num_steps = 0

    class Counting(dict):
        def get(self, key):
            nonlocal num_steps
            num_steps += 1
            return super().get(key)

    text = ("a" * 999 + "c") * 20
    num_characters = sum(map(len, stops))
    assert num_characters <= MAX_STOP_CHARACTERS
    tracemalloc.start()
    stop_texts = StopTexts(stops)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stop_texts._others = Counting(stop_texts._others)
    found = StopSearch(stop_texts)
    for character in text:
        found.push(character, may_end=False)

    assert num_steps <= 2 * len(text) + 1
    assert memory < 100_000 + 64 * num_characters
