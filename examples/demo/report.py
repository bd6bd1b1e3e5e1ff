"""The table at the end of the demo."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo.figures import EngineFigures
from examples.demo.load import Answer

_BARS = "▁▂▃▄▅▆▇█"


def print_report(
    console: Console, answers: Sequence[Answer], engines: Sequence[EngineFigures], seconds: float
) -> None:
    """Prints what the clients saw and what the engines say.

    Args:
        console: Where to; plain when it is no terminal.
        answers: All finished requests.
        engines: All engines, after the last sample.
        seconds: From the first call to the last answer's end.
    """
    num_tokens = sum(answer.num_tokens for answer in answers)
    console.print(_clients_table(answers, num_tokens, seconds))
    console.print(_engines_table(answers, engines, plain=not console.is_terminal))


def _clients_table(answers: Sequence[Answer], num_tokens: int, seconds: float) -> Table:
    first = [(a.first_token_seconds, 1) for a in answers if a.first_token_seconds is not None]
    between = [(gap / count, count) for answer in answers for gap, count in answer.gaps]
    num_stopped = sum(answer.finish_reason == "stop" for answer in answers)
    table = Table(title="What the clients saw", box=box.SIMPLE, title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("requests", f"{len(answers)}")
    table.add_row(
        "ended by an end-of-turn token / by length", f"{num_stopped} / {len(answers) - num_stopped}"
    )
    table.add_row("tokens", f"{num_tokens:,}")
    table.add_row("seconds", f"{seconds:.2f}")
    table.add_row("tokens per second", f"{num_tokens / seconds:,.0f}")
    table.add_row("time to first token, p50 / p90", _milliseconds(first))
    table.add_row("time between tokens, p50 / p90", _milliseconds(between))
    return table


def _engines_table(
    answers: Sequence[Answer], engines: Sequence[EngineFigures], *, plain: bool
) -> Table:
    table = Table(title="What the engines say", box=box.SIMPLE, title_justify="left")
    table.add_column("")
    for engine in engines:
        table.add_column(engine.service.name, justify="right")
    for title, values in _engine_rows(answers, engines, plain=plain):
        table.add_row(title, *values)
    return table


def _engine_rows(
    answers: Sequence[Answer], engines: Sequence[EngineFigures], *, plain: bool
) -> Iterable[tuple[str, list[str]]]:
    by_engine = [[a for a in answers if a.engine == e.service.address] for e in engines]
    yield "requests", [f"{len(own)}" for own in by_engine]
    yield "prompt tokens", [f"{sum(a.num_prompt_tokens for a in own):,}" for own in by_engine]
    yield "of these cached", [f"{sum(a.num_cached_tokens for a in own):,}" for own in by_engine]
    yield "prefix hit rate", [_hit_rate(engine) for engine in engines]
    total = "pagestream_engine_kv_cache_blocks"
    yield (
        "KV blocks: peak / final / all",
        [
            f"{max(e.num_used_blocks)} / {e.num_used_blocks[-1]} / {e.series[total]:.0f}"
            for e in engines
        ],
    )
    yield "preemptions", [f"{_count(e, 'preemptions_total')}" for e in engines]
    yield "memory: first / peak / last, MiB", [_memory(e.memory_bytes) for e in engines]
    if not plain:
        yield "memory over the run", [sparkline(e.memory_bytes) for e in engines]
    yield "metrics", [f"http://{e.service.operations_address}/metrics" for e in engines]


def _count(engine: EngineFigures, name: str) -> int:
    return int(engine.series[f"pagestream_engine_{name}"])


def _hit_rate(engine: EngineFigures) -> str:
    queries = _count(engine, "prefix_cache_query_tokens_total")
    hits = _count(engine, "prefix_cache_hit_tokens_total")
    return f"{hits / queries:.0%}" if queries else "no query"


def _memory(values: Sequence[int]) -> str:
    return " / ".join(f"{value >> 20:,}" for value in (values[0], max(values), values[-1]))


def sparkline(values: Sequence[int], width: int = 20) -> str:
    """Draws values over time as bars from 0 to the largest, so that flat looks flat."""
    largest = max(values)
    if not largest:
        return ""
    points = [values[index * len(values) // width] for index in range(width)]
    return "".join(_BARS[round(value / largest * (len(_BARS) - 1))] for value in points)


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
