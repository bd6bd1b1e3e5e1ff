"""The demo's figures are what they say."""

import pytest

from examples.demo.load import prompts
from examples.demo.report import evenly, percentile, sparkline
from examples.demo.screen import printable


@pytest.mark.parametrize(
    ("weighted", "share", "expected"),
    [
        ([(5.0, 1)], 0.9, 5.0),
        ([(3.0, 1), (1.0, 1), (2.0, 1), (4.0, 1)], 0.5, 2.0),
        ([(1.0, 9), (100.0, 1)], 0.9, 1.0),
        ([(1.0, 8), (100.0, 2)], 0.9, 100.0),
    ],
)
def test_percentile_counts_each_value_as_often_as_it_occurred(weighted, share, expected):
    assert percentile(weighted, share) == expected


def test_even_samples_hold_the_first_and_the_last():
    assert evenly([1, 2, 3, 4, 5, 6, 7], 4) == [1, 3, 5, 7]
    assert evenly([9], 3) == [9, 9, 9]


def test_sparkline_of_flat_memory_is_flat_and_of_growing_memory_grows():
    assert sparkline([7, 7, 7], width=6) == "██████"
    assert sparkline([0, 50, 100], width=3) == "▁▅█"


def test_prompts_take_turns_and_repeat_their_base_fifteen_times():
    sixty = prompts(60)
    assert len(sixty) == 60
    assert {text: sixty.count(text) for text in sixty} == dict.fromkeys(sixty[:2], 30)
    assert sixty[0].count("introduce yourself") == 15
    assert sixty[1].count("list all prime numbers within 100") == 15


def test_what_a_terminal_would_obey_is_not_shown():
    assert printable("a\x1b[31mb\nc é🙂") == "a [31mb c é🙂"
