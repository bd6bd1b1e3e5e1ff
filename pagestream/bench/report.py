"""The results of a load, for people and for programs."""

import dataclasses
import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagestream.bench.options import BenchConfig
from pagestream.bench.plot import histogram
from pagestream.bench.results import Results
from pagestream.bench.sketch import Sketch
from servicekit.version import software_version

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_BUSY_SHARE = 0.8
_PLOT_WIDTH = 72


def print_report(console: Console, config: BenchConfig, results: Results) -> None:
    """Prints tables and histograms."""
    console.print(_counts_table(config, results))
    console.print()
    console.print(_latencies_table(results))
    if results.cpu_seconds > _BUSY_SHARE * results.seconds > 0:
        console.print(
            Text(
                "This client was busy most of the time: a faster one, or several, may get more.",
                style="yellow",
            )
        )
    if config.report.plot:
        width = min(_PLOT_WIDTH, console.width)
        for title, sketch in _latencies(results).items():
            if not sketch.count:
                continue
            console.print()
            for line in histogram(title, sketch, width):
                console.print(Text(line), no_wrap=True)


def to_json(config: BenchConfig, model: str, results: Results) -> dict[str, Any]:
    """Returns the results with what they were measured with; times are seconds."""
    seconds = results.seconds
    return {
        "url": config.url,
        "model": model,
        "version": software_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": dataclasses.asdict(config.load),
        "workload": {
            **dataclasses.asdict(config.workload),
            "prompt_tokens": str(config.workload.prompt_tokens),
            "output_tokens": str(config.workload.output_tokens),
        },
        "seconds": seconds,
        "requests": {
            "succeeded": results.num_succeeded,
            "failed": results.num_failed,
            "unfinished": results.num_started - results.num_ended,
            "failures": results.failures,
            "per_second": _rate(results.num_ended, seconds),
        },
        "tokens": {
            "prompt": results.num_prompt_tokens,
            "cached": results.num_cached_tokens,
            "output": results.num_output_tokens,
            "prompt_per_second": _rate(results.num_prompt_tokens, seconds),
            "output_per_second": _rate(results.num_output_tokens, seconds),
        },
        "latencies": {
            "first_token_seconds": _percentiles(results.first_token),
            "next_token_seconds": _percentiles(results.next_token),
            "answer_seconds": _percentiles(results.answer),
            "send_delay_seconds": _percentiles(results.send_delay),
        },
        "client_cpu_seconds": results.cpu_seconds,
    }


def _latencies(results: Results) -> dict[str, Sketch]:
    return {
        "first token": results.first_token,
        "next token": results.next_token,
        "whole answer": results.answer,
    }


def _percentiles(sketch: Sketch) -> dict[str, Any]:
    if not sketch.count:
        return {"count": 0}
    return {
        "count": sketch.count,
        "mean": sketch.mean,
        "min": sketch.minimum,
        "max": sketch.maximum,
        **{name: sketch.percentile(share) for name, share in _SHARES.items()},
        "histogram": [list(bucket) for bucket in sketch],
    }


def _counts_table(config: BenchConfig, results: Results) -> Table:
    seconds = results.seconds
    table = Table.grid(padding=(0, 2))
    rate = _rate(results.num_ended, seconds)
    table.add_row(
        "requests", f"{results.num_ended:,} in {seconds:,.2f} s, {_number(rate)} per second"
    )
    if unfinished := results.num_started - results.num_ended:
        table.add_row("interrupted", f"{unfinished:,}")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in results.failures.items())
    style = "red" if reasons else ""
    table.add_row("failed", Text(f"{results.num_failed:,}" + (reasons and f": {reasons}"), style))
    cached = _rate(100 * results.num_cached_tokens, results.num_prompt_tokens)
    table.add_row(
        "tokens in", f"{_tokens(results.num_prompt_tokens, seconds)}, {cached:.0f} % cached"
    )
    table.add_row("tokens out", _tokens(results.num_output_tokens, seconds))
    share = _rate(100 * results.cpu_seconds, seconds)
    client = f"{share:.0f} % of a core"
    if config.load.rate is not None and results.send_delay.count:
        late = results.send_delay.percentile(0.99)
        client += f", 99 % of requests sent within {_number(1e3 * late)} ms of their time"
    table.add_row("this client", client)
    return table


def _latencies_table(results: Results) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("milliseconds")
    for name in (*_SHARES, "mean", "max"):
        table.add_column(name, justify="right", min_width=8)
    for title, sketch in _latencies(results).items():
        values = ["-"] * (len(_SHARES) + 2)
        if sketch.count:
            seconds = [sketch.percentile(share) for share in _SHARES.values()]
            values = [_number(1e3 * one) for one in (*seconds, sketch.mean, sketch.maximum)]
        table.add_row(title, *values)
    return table


def _tokens(count: int, seconds: float) -> str:
    return f"{count:,}, {_number(_rate(count, seconds))} per second"


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
