"""The table at the end of the demo."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo.figures import EngineFigures
from examples.demo.load import Answer

_BARS = "▁▂▃▄▅▆▇█"


def print_report(
    console: Console,
    answers: Sequence[Answer],
    engines: Sequence[EngineFigures],
    seconds: float,
    *,
    are_answers_known: bool,
) -> None:
    """Prints what the clients saw and what the engines say.

    Args:
        console: Where to; plain when it is no terminal.
        answers: All finished requests.
        engines: All engines, after the last sample.
        seconds: From the first call to the last answer's end.
        are_answers_known: Whether the model is one whose right answers are known.
    """
    console.print(_clients_table(answers, seconds, are_answers_known=are_answers_known))
    console.print(_engines_table(answers, engines))


def _clients_table(answers: Sequence[Answer], seconds: float, *, are_answers_known: bool) -> Table:
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_stopped = sum(answer.finish_reason == "stop" for answer in answers)
    first = [(a.first_token_seconds, 1) for a in answers if a.first_token_seconds is not None]
    between = [(gap / count, count) for answer in answers for gap, count in answer.gaps]
    table = _table("What the clients saw", "")
    table.add_row("requests", f"{len(answers)}")
    table.add_row("ended at their length", f"{len(answers) - num_stopped}")
    table.add_row("ended by an end-of-turn token", f"{num_stopped}")
    if are_answers_known:
        num_right = sum(answer.is_right for answer in answers)
        table.add_row(
            "right answers", f"{num_right} of {len(answers)}, {num_right / len(answers):.0%}"
        )
    table.add_row("tokens", f"{num_tokens:,}")
    table.add_row("seconds", f"{seconds:.2f}")
    table.add_row("tokens per second", f"{num_tokens / seconds:,.0f}")
    table.add_row("time to first token, p50 / p90", _milliseconds(first))
    table.add_row("time between tokens, p50 / p90", _milliseconds(between))
    return table


def _engines_table(answers: Sequence[Answer], engines: Sequence[EngineFigures]) -> Table:
    table = _table("What the engines say", *(engine.service.name for engine in engines))
    for title, values in _engine_rows(answers, engines):
        table.add_row(title, *values)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, min_width=60
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.show_header = any(columns)
    return table


def _engine_rows(
    answers: Sequence[Answer], engines: Sequence[EngineFigures]
) -> Iterable[tuple[str, list[str]]]:
    by_engine = [[a for a in answers if a.engine == e.service.address] for e in engines]
    yield "requests", [f"{len(own)}" for own in by_engine]
    yield "prompt tokens", [f"{sum(a.num_prompt_tokens for a in own):,}" for own in by_engine]
    yield (
        "cached prompt tokens",
        [f"{sum(a.num_cached_tokens for a in own):,}" for own in by_engine],
    )
    yield "prefix hit rate", [_hit_rate(engine) for engine in engines]
    yield "KV blocks in the pool", [f"{_count(engine, 'kv_cache_blocks'):,}" for engine in engines]
    yield "KV blocks in use, peak", [f"{max(engine.num_used_blocks):,}" for engine in engines]
    yield "KV blocks in use, final", [f"{engine.num_used_blocks[-1]:,}" for engine in engines]
    yield "preemptions", [f"{_count(engine, 'preemptions_total'):,}" for engine in engines]
    memory = "process memory" if not engines[0].gpus else "GPU memory"
    yield f"{memory}, start", [_mebibytes(engine.memory_bytes[0]) for engine in engines]
    yield f"{memory}, peak", [_mebibytes(max(engine.memory_bytes)) for engine in engines]
    yield f"{memory}, final", [_mebibytes(engine.memory_bytes[-1]) for engine in engines]
    yield f"{memory}, over the run", [sparkline(engine.memory_bytes) for engine in engines]


def _count(engine: EngineFigures, name: str) -> int:
    return int(engine.series[f"pagestream_engine_{name}"])


def _hit_rate(engine: EngineFigures) -> str:
    queries = _count(engine, "prefix_cache_query_tokens_total")
    hits = _count(engine, "prefix_cache_hit_tokens_total")
    return f"{hits / queries:.0%}" if queries else "no query"


def _mebibytes(value: int) -> str:
    return f"{value >> 20:,} MiB"


def evenly(values: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the values, the first and the last among them, at even distances."""
    return [values[index * (len(values) - 1) // (count - 1)] for index in range(count)]


def sparkline(values: Sequence[int], width: int = 16) -> str:
    """Draws values over time as bars from 0 to the largest, so that flat looks flat."""
    largest = max(max(values), 1)
    return "".join(
        _BARS[round(value / largest * (len(_BARS) - 1))] for value in evenly(values, width)
    )


def percentile(weighted: Sequence[tuple[float, int]], share: float) -> float:
    """Returns the smallest value that at least `share` of the weight does not exceed.

    Args:
        weighted: Values and how often each occurred, at least one.
        share: From 0 to 1.
    """
    ordered = sorted(weighted)
    wanted = share * sum(weight for _, weight in ordered)
    reached = 0
    for value, weight in ordered:
        reached += weight
        if reached >= wanted:
            return value
    return ordered[-1][0]


def _milliseconds(weighted: Sequence[tuple[float, int]]) -> str:
    if not weighted:
        return "none"
    values = (percentile(weighted, share) * 1000 for share in (0.5, 0.9))
    return " / ".join(f"{value:,.1f} ms" for value in values)
