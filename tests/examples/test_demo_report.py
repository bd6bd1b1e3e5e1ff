"""The demo's figures are what they say."""

import io
import re

import pytest
from rich.console import Console

from examples.demo.figures import EngineFigures
from examples.demo.load import RIGHT_ANSWERS, Answer, prompts
from examples.demo.report import evenly, percentile, print_report, sparkline
from examples.demo.screen import printable
from examples.demo.services import Service


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


@pytest.fixture
def engines(tmp_path):
    """Two engines on GPUs as large as they come; the report looks at no process."""
    return [
        EngineFigures(
            service=Service(
                name=f"engine-{index}",
                address=f"e:{index}",
                operations_address="",
                log_path=tmp_path,
                process=None,
            ),
            gpus=(index,),
            memory_bytes=[mebibytes << 20 for mebibytes in (113_000, 113_659, 113_600)],
            num_used_blocks=[0, 1234 + index, 0],
            series={
                "pagestream_engine_kv_cache_blocks": 65536.0,
                "pagestream_engine_preemptions_total": float(index),
                "pagestream_engine_prefix_cache_query_tokens_total": 1000.0 * index,
                "pagestream_engine_prefix_cache_hit_tokens_total": 590.0 * index,
            },
        )
        for index in range(2)
    ]


INTRODUCE, _ = prompts(2)
# One was cut off, one is right, one goes on.
ANSWERS = [
    Answer(
        prompt=INTRODUCE,
        text=RIGHT_ANSWERS[INTRODUCE],
        engine="e:0",
        num_prompt_tokens=1000,
        num_cached_tokens=0,
        num_tokens=4,
        finish_reason="length",
        first_token_seconds=0.25,
        gaps=[(0.020, 2), (0.050, 1)],
    ),
    Answer(
        prompt=INTRODUCE,
        text=RIGHT_ANSWERS[INTRODUCE],
        engine="e:1",
        num_prompt_tokens=500,
        num_cached_tokens=496,
        num_tokens=1,
        finish_reason="stop",
        first_token_seconds=0.5,
    ),
    Answer(
        prompt=INTRODUCE,
        text=RIGHT_ANSWERS[INTRODUCE] + " And more.",
        engine="e:1",
        num_prompt_tokens=500,
        num_cached_tokens=96,
        num_tokens=1,
        finish_reason="stop",
        first_token_seconds=0.125,
    ),
]


def report(engines, width, *, are_answers_known=True):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_report(console, ANSWERS, engines, seconds=0.5, are_answers_known=are_answers_known)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_report_is_what_was_measured_and_fits(engines, width):
    output = report(engines, width)
    assert "…" not in output
    lines = [re.split("  +", line.strip()) for line in output.splitlines()]
    rows = {title: values for title, *values in lines}
    assert [values for title, *values in lines if title == "requests"] == [["3"], ["1", "2"]]
    expected = {
        "ended at their length": ["1"],
        "ended by an end-of-turn token": ["2"],
        "right answers": ["1 of 3, 33%"],
        "tokens": ["6"],
        "seconds": ["0.50"],
        "tokens per second": ["12"],
        "time to first token, p50 / p90": ["250.0 ms / 500.0 ms"],
        "time between tokens, p50 / p90": ["10.0 ms / 50.0 ms"],
        "prompt tokens": ["1,000", "1,000"],
        "cached prompt tokens": ["0", "592"],
        "prefix hit rate": ["no query", "59%"],
        "KV blocks in the pool": ["65,536", "65,536"],
        "KV blocks in use, peak": ["1,234", "1,235"],
        "KV blocks in use, final": ["0", "0"],
        "preemptions": ["0", "1"],
        "GPU memory, start": ["113,000 MiB"] * 2,
        "GPU memory, peak": ["113,659 MiB"] * 2,
        "GPU memory, final": ["113,600 MiB"] * 2,
        "GPU memory, over the run": ["█" * 16] * 2,
    }
    assert {title: rows.get(title) for title in expected} == expected


def test_nothing_is_said_of_answers_that_nobody_knows(engines):
    assert "right answers" not in report(engines, 80, are_answers_known=False)


def test_memory_without_a_gpu_is_that_of_the_processes(engines):
    for engine in engines:
        engine.gpus = ()
    output = report(engines, 80)
    assert "process memory, peak" in output
    assert "GPU" not in output
