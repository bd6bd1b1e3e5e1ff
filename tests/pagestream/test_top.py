"""The table of a fleet, from a real router and from pages of metrics as services have them."""

import asyncio
import dataclasses
import io
import itertools
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from engine_service.config import ServerOptions
from pagestream.router_client import DEFAULT_ROUTER
from pagestream.top import metrics_page
from pagestream.top.command import main
from pagestream.top.fleet import EngineFigures, FleetReader, RouterFigures, Snapshot
from pagestream.top.metrics_page import BadPage, read_page
from pagestream.top.options import TopOptions, read_config
from pagestream.top.table import render
from pagestream.top.window import Latency
from router.config import RouterConfig
from router.types.engine_state import EngineLoad, EngineState
from servicekit.http_server import Answer, HttpServer
from servicekit.log import flush_log
from tests.fakes.certificates import make_certificates
from tests.fakes.fake_fleet import ENGINE
from tests.pagestream.routers import pagestream_on_terminal, run_pagestream, scripted_router
from tests.router.http.scripted_fleet import ScriptedFleet

METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
HOSTILE = "\x1b[2Jevil[bold]"


def router_page(look):
    """The page of a router at each look: ten more requests, of which one fails."""
    return f"""# TYPE pagestream_router_requests_total counter
pagestream_router_requests_total{{model_name="a",outcome="stop"}} {9 * look}
pagestream_router_requests_total{{model_name="b",outcome="queue_full"}} {look}
pagestream_router_prompt_tokens_total {400 * look}
pagestream_router_actual_cached_tokens_total {100 * look}
pagestream_router_generated_tokens_total {50 * look}
pagestream_router_generated_tokens_created 1.7e9
pagestream_router_time_to_first_token_seconds_bucket{{le="0.1"}} {5 * look}
pagestream_router_time_to_first_token_seconds_bucket{{le="0.2"}} {10 * look}
pagestream_router_time_to_first_token_seconds_bucket{{le="+Inf"}} {10 * look}
"""


def engine_page(look):
    return f"""pagestream_engine_model_info{{model_name="small",dtype="none"}} 1
pagestream_engine_prefix_cache_query_tokens_total {100 * look}
pagestream_engine_prefix_cache_hit_tokens_total {25 * look}
pagestream_engine_generated_tokens_total {1000 - look}
"""


@asynccontextmanager
async def pages(make):
    """Yields the address of an operations port whose pages follow one another."""
    looks = itertools.count(1)

    async def answer(_):
        return Answer(body=make(next(looks)).encode())

    server = HttpServer({"/metrics": answer})
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()


class LoadedFleet(ScriptedFleet):
    """Its engine waits for blocks; another one cannot be reached."""

    def engines(self):
        (first,) = super().engines()
        load = EngineLoad(
            state=EngineState.SERVING, num_running=3, num_waiting=2, num_free_blocks=6, num_blocks=8
        )
        return [
            dataclasses.replace(first, load=load),
            dataclasses.replace(
                first,
                address="10.0.0.2:50051",
                state=EngineState.UNAVAILABLE,
                detail=HOSTILE,
                model=None,
                load=EngineLoad(state=EngineState.UNAVAILABLE),
            ),
        ]


async def look_twice(*arguments):
    async with FleetReader(read_config(arguments)) as reader:
        await reader.read()
        return await reader.read()


async def test_figures_come_from_the_router_and_from_operations_ports():
    async with (
        scripted_router({}, LoadedFleet({})) as fleet,
        pages(router_page) as router_operations,
        pages(engine_page) as engine_operations,
    ):
        snapshot = await look_twice(
            fleet.address,
            f"--router-operations={fleet.address}={router_operations}",
            f"--engine-operations={ENGINE}={engine_operations}",
        )
    (router,) = snapshot.routers
    assert (router.num_engines, router.num_serving_engines, router.error) == (2, 1, "")
    assert router.requests_per_second == pytest.approx(10 * router.failures_per_second)
    assert router.prompt_tokens_per_second == pytest.approx(8 * router.tokens_per_second)
    assert router.hit_rate == 0.25
    assert router.first_token_seconds == Latency(p50=0.1, p90=pytest.approx(0.18))
    assert router.between_tokens_seconds == Latency()
    engine, lost = snapshot.engines
    assert (engine.state, engine.model, engine.router) == ("serving", "small", fleet.address)
    assert (engine.num_running, engine.num_waiting) == (3, 2)
    assert (engine.cache_usage, engine.hit_rate) == (0.25, 0.25)
    # A counter that went back is that of a new start.
    assert engine.tokens_per_second is None
    assert (lost.state, lost.hit_rate, lost.cache_usage) == ("unavailable", None, None)
    assert lost.detail == r"\x1b[2Jevil[bold]"


async def test_operations_port_without_tls_is_told_apart(tmp_path):
    ca = make_certificates(tmp_path) / "ca.pem"
    async with scripted_router({}) as fleet, pages(router_page) as operations:
        snapshot = await look_twice(
            fleet.address,
            f"--router-operations={fleet.address}={operations}",
            "--engine-operations=",
            f"--operations-tls-ca={ca}",
        )
    said = f"{operations}: the port speaks plain text, but --operations-tls-ca is given: "
    assert snapshot.routers[0].metrics_error.startswith(said)


async def test_page_of_another_service_or_model_is_not_shown():
    def foreign(look):
        return engine_page(look).replace("small", "large")

    async with scripted_router({}) as fleet, pages(engine_page) as one, pages(foreign) as other:
        snapshot = await look_twice(
            fleet.address,
            f"--router-operations={fleet.address}={one}",
            f"--engine-operations={ENGINE}={other}",
        )
    assert snapshot.routers[0].requests_per_second is None
    assert snapshot.routers[0].metrics_error.endswith("the page is that of another engine")
    assert snapshot.engines[0].hit_rate is None
    assert snapshot.engines[0].metrics_error.endswith("the page is that of another engine")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("node_load1 0.5\n", "another service"),
        ("<html>\n", "cannot be read|another service"),
        ('pagestream_router_requests_total{outcome="' + r"\"" * 9000, "more than 4096 characters"),
        ('pagestream_engine_time_to_first_token_seconds_bucket{le="x"} 1\n', "cannot be read"),
    ],
)
def test_page_that_is_none_of_ours_is_refused(text, why):
    with pytest.raises(BadPage, match=why):
        read_page(text)


async def test_endless_page_is_cut_off(monkeypatch):
    monkeypatch.setattr(metrics_page, "MAX_PAGE_BYTES", 1000)
    async with scripted_router({}) as fleet, pages(lambda _: "# x\n" * 1000) as address:
        snapshot = await look_twice(fleet.address, f"--router-operations={fleet.address}={address}")
    assert "more than 1000 bytes" in snapshot.routers[0].metrics_error


@pytest.mark.parametrize(
    "series",
    [
        *(f"router_{name} | counter" for name in (
            "prompt_tokens_total", "generated_tokens_total", "actual_cached_tokens_total",
        )),
        "router_requests_total | counter",
        *(f"engine_{name} | counter" for name in (
            "generated_tokens_total", "prefix_cache_hit_tokens_total",
            "prefix_cache_query_tokens_total",
        )),
        "engine_model_info | gauge",
        *(f"{service}_{name} | histogram"
          for service in ("router", "engine") for name in metrics_page.HISTOGRAMS),
    ],
)  # fmt: skip
def test_services_have_the_series_that_are_read(series):
    # One that is missing would look like one that does not move. The document is what the code has.
    name, kind = series.split(" | ")
    (row,) = [line for line in METRICS.splitlines() if line.startswith(f"| `pagestream_{name}` |")]
    assert f"| {kind} |" in row
    assert name != "router_requests_total" or "`outcome`" in row
    assert name != "engine_model_info" or "`model_name`" in row


def test_default_ports_are_those_of_the_services():
    router, engine = TopOptions().router_operations, TopOptions().engine_operations
    fields = {
        kind: {field.name: field.default for field in dataclasses.fields(kind)}
        for kind in (RouterConfig, ServerOptions)
    }
    assert router.port == fields[RouterConfig]["operations_port"]
    assert engine.port == fields[ServerOptions]["operations_port"]
    assert f"127.0.0.1:{fields[RouterConfig]['port']}" == DEFAULT_ROUTER


def test_one_port_for_two_engines_of_a_host_is_not_guessed():
    operations = TopOptions().engine_operations
    engines = ["10.0.0.1:50051", "10.0.0.2:50051", "10.0.0.2:50052", "nonsense", "[::1]:1"]
    assert [operations.of(one, engines) for one in engines] == [
        f"10.0.0.1:{operations.port}", "", "", "", f"[::1]:{operations.port}"
    ]  # fmt: skip


def drawn(snapshot, width, height=None):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(snapshot, width, height))
    return console.file.getvalue().splitlines()


def engine_figures(number, **changes):
    values = {
        "address": f"10.0.0.{number}:50051", "router": "r:1", "state": "serving",
        "model": "[red]small", "num_running": 1, "num_waiting": 0,
    }  # fmt: skip
    return EngineFigures(**{**values, **changes})


def test_table_fits_and_shows_what_is_wrong_first():
    engines = [engine_figures(number) for number in range(100, 140)]
    engines.append(engine_figures(150, state="unavailable", detail=r"\x1b[2J refused"))
    snapshot = Snapshot(routers=[RouterFigures(address="127.0.0.1:50050")], engines=engines)
    wide, narrow = drawn(snapshot, 100, 24), drawn(snapshot, 79, 24)
    assert len(wide) <= 23
    assert len(narrow) <= 23
    rows = [line.split() for line in narrow if line.startswith("10.")]
    assert rows[0][:2] == ["10.0.0.150:50051", "unavailable"]
    assert not any("…" in cell for row in rows for cell in row)
    assert any("[red]small" in line for line in wide)
    assert r"engine 10.0.0.150:50051 is unavailable: \x1b[2J refused" in narrow
    assert any(f"{41 - len(rows)} more engines" in line for line in narrow)
    assert len([line for line in drawn(snapshot, 200) if line.startswith("10.")]) == 41


async def test_pipe_gets_one_plain_table_or_json():
    async with scripted_router({}) as fleet:
        arguments = ("top", fleet.address, "127.0.0.1:1", "--interval", "0.2")
        table, document = await asyncio.gather(
            run_pagestream(*arguments), run_pagestream(*arguments, "--json")
        )
    # A router is unreachable: a script shall notice.
    assert (table.code, document.code) == (1, 1)
    assert (table.errors, document.errors) == ("", "")
    assert "\x1b" not in table.output
    row = next(line for line in table.output.splitlines() if line.startswith(ENGINE))
    assert row.split()[:4] == [ENGINE, "serving", "small", "3"]
    assert "no router answers at 127.0.0.1:1: " in table.output
    shown = json.loads(document.output)
    assert [one["address"] for one in shown["routers"]] == [fleet.address, "127.0.0.1:1"]
    assert shown["engines"][0]["num_running"] == 3


async def test_live_table_follows_size_and_routers_and_ends_with_q(tmp_path):
    arguments = ("top", "--interval", "0.2", "--router-operations", "", "--engine-operations", "")
    async with pagestream_on_terminal(*arguments, "127.0.0.1:1", home=tmp_path) as terminal:
        await terminal.expect("no router answers at 127.0.0.1:1")
        terminal.type("\x03")
        assert await terminal.exit_code() == 0
    async with (
        scripted_router({}) as fleet,
        pagestream_on_terminal(*arguments, fleet.address, home=tmp_path) as terminal,
    ):
        await terminal.expect("small")
        terminal.resize(24, 79)
        await terminal.expect("q ends")
        # A narrow one has no column for the model.
        while "small" in (between := await terminal.expect("q ends")):
            pass
        assert ENGINE in between
        terminal.type("q")
        assert await terminal.exit_code() == 0
        # The alternate screen is left.
        await terminal.expect("\x1b[?1049l")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a:1", "a:1"], "the router a:1 is given twice"),
        (["--interval", "0"], "--interval is 0.0, must be a number of seconds from 0.2"),
        (["--engine-operations", "70000"], "--engine-operations is '70000', must be a port"),
        (["--engine-operations", "a:1"], "--engine-operations is 'a:1', must be a port"),
    ],
)
def test_mistake_is_one_line(arguments, said, capfd):
    assert main(arguments) == 2
    flush_log()
    printed = capfd.readouterr()
    assert printed.err.startswith("pagestream top: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
