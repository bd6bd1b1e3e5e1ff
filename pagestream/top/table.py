"""The tables of `pagestream top`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagestream.top.fleet import EngineFigures, RouterFigures, Snapshot
from pagestream.top.window import Latency

_UNKNOWN = "-"
_WIDE = 96
"""Columns of a terminal from which on everything is shown."""
_LATENCY = "ms p50/p90"
_STYLES = {"serving": "green", "draining": "yellow", "connecting": "yellow"}

_Figures = TypeVar("_Figures")


@dataclass(frozen=True, slots=True)
class _Column(Generic[_Figures]):
    """One column of a table.

    Attributes:
        cell: Returns what stands there.
        needs_width: Whether narrow terminals do without.
    """

    title: str
    cell: Callable[[_Figures], Text | str]
    is_text: bool = False
    needs_width: bool = False


def render(snapshot: Snapshot, width: int, height: int | None = None) -> RenderableType:
    """Returns the tables of a snapshot.

    Args:
        snapshot: What is known.
        width: Columns of the terminal; a narrow one shows fewer columns.
        height: Its rows; engines that find no place are only counted, those in order first.
            None means any number.
    """
    notes = [*_router_notes(snapshot.routers), *_engine_notes(snapshot.engines)]
    engines = sorted(snapshot.engines, key=lambda one: (one.state == "serving", one.address))
    if height is not None:
        # Of the rest, the heads of the tables and the empty lines take ten rows.
        notes = notes[: max(1, height // 4)]
        room = max(1, height - len(snapshot.routers) - len(notes) - 10)
        if len(engines) > room:
            notes.append(f"{len(engines) - room + 1} more engines have no place here")
            engines = engines[: room - 1]
    return Group(
        _table(_ROUTER_COLUMNS, snapshot.routers, is_wide=width >= _WIDE),
        Text(),
        _table(_ENGINE_COLUMNS, engines, is_wide=width >= _WIDE),
        Text(),
        *(Text(note, style="dim", no_wrap=True, overflow="ellipsis") for note in notes),
    )


def _table(
    columns: Sequence[_Column[_Figures]], rows: Iterable[_Figures], *, is_wide: bool
) -> Table:
    shown = [column for column in columns if is_wide or not column.needs_width]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for column in shown:
        justify: Literal["left", "right"] = "left" if column.is_text else "right"
        table.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(column.cell(row) for column in shown))
    return table


def _router_notes(routers: Sequence[RouterFigures]) -> list[str]:
    notes = [one.error for one in routers if one.error]
    return notes + [
        f"no metrics of router {one.address}, see --router-operations: {one.metrics_error}"
        for one in routers
        if one.metrics_error and not one.error
    ]


def _engine_notes(engines: Sequence[EngineFigures]) -> list[str]:
    notes = [f"engine {one.address} is {one.state}: {one.detail}" for one in engines if one.detail]
    silent = [one for one in engines if one.metrics_error]
    if silent:
        first = silent[0]
        who = f"{len(silent)} engines, such as" if len(silent) > 1 else "engine"
        notes.append(
            f"no metrics of {who} {first.address}, see --engine-operations: {first.metrics_error}"
        )
    return notes


def _engines(router: RouterFigures) -> str:
    if router.error:
        return "down"
    return f"{router.num_serving_engines}/{router.num_engines}"


def _whole(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"


def _milliseconds(latency: Latency) -> str:
    if latency.p50 is None or latency.p90 is None:
        return _UNKNOWN
    return f"{_number(1e3 * latency.p50)}/{_number(1e3 * latency.p90)}"


_ROUTER_COLUMNS: Sequence[_Column[RouterFigures]] = (
    _Column("router", lambda one: Text(one.address, "red" if one.error else ""), is_text=True),
    _Column("engines", lambda one: _engines(one)),
    _Column("open", lambda one: _whole(one.num_in_flight)),
    _Column("req/s", lambda one: _number(one.requests_per_second)),
    _Column(
        "fail/s",
        lambda one: Text(
            _number(one.failures_per_second), "red" if one.failures_per_second else ""
        ),
    ),
    _Column("tokens/s\nin", lambda one: _number(one.prompt_tokens_per_second), needs_width=True),
    _Column("tokens/s\nout", lambda one: _number(one.tokens_per_second)),
    _Column("hits", lambda one: _percent(one.hit_rate), needs_width=True),
    _Column(f"first token\n{_LATENCY}", lambda one: _milliseconds(one.first_token_seconds)),
    _Column(f"next token\n{_LATENCY}", lambda one: _milliseconds(one.between_tokens_seconds)),
)
_ENGINE_COLUMNS: Sequence[_Column[EngineFigures]] = (
    _Column("engine", lambda one: Text(one.address), is_text=True),
    _Column("state", lambda one: Text(one.state, _STYLES.get(one.state, "red")), is_text=True),
    _Column("model", lambda one: Text(one.model or _UNKNOWN), is_text=True, needs_width=True),
    _Column("run", lambda one: _whole(one.num_running)),
    _Column("wait", lambda one: _whole(one.num_waiting)),
    _Column("cache", lambda one: _percent(one.cache_usage)),
    _Column("hits", lambda one: _percent(one.hit_rate), needs_width=True),
    _Column("tokens/s", lambda one: _number(one.tokens_per_second)),
    _Column(f"first token\n{_LATENCY}", lambda one: _milliseconds(one.first_token_seconds)),
    _Column(f"next token\n{_LATENCY}", lambda one: _milliseconds(one.between_tokens_seconds)),
)
