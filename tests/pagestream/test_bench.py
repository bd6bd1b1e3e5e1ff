"""The load generator: what it sends, when, and what it says of the answers."""

import asyncio
import contextlib
import itertools
import json
import random
import ssl

import pytest

from pagestream.bench import http_target
from pagestream.bench.command import main
from pagestream.bench.grpc_target import GrpcTarget
from pagestream.bench.http_target import HttpTarget
from pagestream.bench.load import Load
from pagestream.bench.options import Lengths, LoadOptions, WorkloadOptions
from pagestream.bench.plot import histogram
from pagestream.bench.results import Results, Usage
from pagestream.bench.sketch import Sketch
from pagestream.bench.target import RequestFailed
from pagestream.bench.workload import Request, Workload
from pagestream.connection import Connection, ConnectionOptions
from pagestream.errors import CommandFailed
from router.errors import QueueFull
from servicekit.log import flush_log
from tests.fakes.certificates import make_certificates
from tests.pagestream.routers import pagestream_on_terminal, run_pagestream, scripted_router

ANSWER = "the quick brown fox"
PLAIN = Connection(ConnectionOptions(), "", is_secure=False)
WORKLOAD = WorkloadOptions(prompt_tokens=Lengths(8, 40), output_tokens=Lengths(1, 30))


def targets(fleet):
    """Both ways to the router."""
    http = HttpTarget(f"127.0.0.1:{fleet.port}", PLAIN, 4, WORKLOAD)
    return [GrpcTarget(fleet.address, PLAIN, 2, WORKLOAD), http]


async def results_of(target, **options):
    async with target, asyncio.timeout(30):
        load = Load(target, "small", Workload(WORKLOAD), LoadOptions(**options), WORKLOAD.seed)
        await load.run()
    return load.results


async def test_both_doors_get_the_same_requests_and_give_the_same_counts():
    async with scripted_router({"": [ANSWER]}) as fleet:
        found = []
        for target in targets(fleet):
            results = await results_of(target, requests=9, concurrency=4)
            asked = [
                (list(request.prompt_token_ids), request.sampling_params.max_tokens,
                 request.sampling_params.seed)
                for request in fleet.requests
            ]  # fmt: skip
            fleet.requests.clear()
            counts = (
                results.num_succeeded, results.num_failed, results.num_prompt_tokens,
                results.num_cached_tokens, results.num_output_tokens, results.first_token.count,
                results.next_token.count, results.answer.count,
            )  # fmt: skip
            found.append((sorted(asked), counts))
    assert found[0] == found[1]
    asked, counts = found[0]
    workload = Workload(WORKLOAD)
    requests = [workload.request(number) for number in range(9)]
    assert asked == sorted((list(one.prompt), one.max_tokens, one.seed) for one in requests)
    assert counts[:3] == (9, 0, sum(len(one.prompt) for one in requests))
    # All tokens but the first of an answer have one before them.
    assert counts[6] == counts[4] - 9 > 0


async def test_failures_are_counted_by_reason():
    answers = [QueueFull("too much is asked", {}), ANSWER]
    async with scripted_router({"": answers}) as fleet:
        for target in targets(fleet):
            fleet._script = {"": list(answers)}
            results = await results_of(target, requests=3, concurrency=1)
            assert results.failures == {"QUEUE_FULL": 1}
            assert (results.num_succeeded, results.answer.count) == (2, 2)


class HeldTarget:
    """Answers at once, except the first request, which waits."""

    def __init__(self):
        self.go = asyncio.Event()
        self.num_asked = 0
        self.is_asked = asyncio.Event()
        self.is_asked_five_times = asyncio.Event()

    async def ask(self, model, request, usage):
        self.num_asked += 1
        self.is_asked.set()
        if self.num_asked == 1:
            await self.go.wait()
        if self.num_asked == 5:
            self.is_asked_five_times.set()
        yield 1


async def test_open_loop_measures_from_the_planned_time():
    target = HeldTarget()
    options = LoadOptions(requests=20, rate=1000, concurrency=1)
    load = Load(target, "", Workload(WORKLOAD), options, 0)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await target.is_asked.wait()
        await asyncio.sleep(0.5)
        assert target.num_asked == 1
        target.go.set()
    # All were planned within some 20 ms, and could not be sent before half a second was over.
    assert load.results.answer.count == 20
    assert load.results.answer.minimum > 0.3
    assert load.results.first_token.minimum > 0.3
    assert load.results.send_delay.percentile(0.5) > 0.3


async def test_closed_loop_sends_when_an_answer_has_ended():
    target = HeldTarget()
    options = LoadOptions(requests=5, concurrency=2)
    load = Load(target, "", Workload(WORKLOAD), options, 0)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await target.is_asked_five_times.wait()
        assert load.results.num_started == 5
        assert load.results.num_succeeded < 5
        target.go.set()
    assert load.results.num_succeeded == 5


async def test_what_could_not_be_sent_within_the_time_is_said():
    target = HeldTarget()
    load = Load(
        target, "", Workload(WORKLOAD), LoadOptions(seconds=0.2, rate=100, concurrency=1), 0
    )
    asyncio.get_running_loop().call_later(0.5, target.go.set)
    async with asyncio.timeout(30):
        await load.run()
    results = load.results
    assert results.num_succeeded >= 1
    assert set(results.failures) == {"NOT_SENT"}
    assert results.num_ended == results.num_started > 5


async def test_request_that_takes_too_long_has_failed():
    results = Results()
    load = Load(
        HeldTarget(), "", Workload(WORKLOAD), LoadOptions(requests=1, request_seconds=0.1), 0
    )
    load.results = results
    async with asyncio.timeout(30):
        await load.run()
    assert results.failures == {"TIMEOUT": 1}


def test_workload_is_that_of_its_seed():
    options = {"prompt_tokens": Lengths(50, 90), "output_tokens": Lengths(3, 5)}
    first = [Workload(WorkloadOptions(**options)).request(number) for number in range(50)]
    again = [Workload(WorkloadOptions(**options)).request(number) for number in range(50)]
    other = [Workload(WorkloadOptions(**options, seed=1)).request(number) for number in range(50)]
    assert first == again
    assert not {one.prompt for one in first} & {one.prompt for one in other}
    assert {len(one.prompt) for one in first} <= set(range(50, 91))
    assert {one.max_tokens for one in first} == {3, 4, 5}


def test_prompts_share_their_beginnings():
    options = WorkloadOptions(prompt_tokens=Lengths(41, 90), prefix_share=0.5, prefixes=2)
    prompts = [Workload(options).request(number).prompt for number in range(40)]
    beginnings = {prompt[:20] for prompt in prompts}
    assert len(beginnings) == 2
    for prompt, other in itertools.combinations(prompts, 2):
        if prompt[:20] == other[:20]:
            num_shared = min(round(len(prompt) / 2), round(len(other) / 2))
            assert prompt[:num_shared] == other[:num_shared]
            assert prompt[num_shared : num_shared + 8] != other[num_shared : num_shared + 8]


def test_sketch_is_small_and_exact_to_one_part_in_a_hundred():
    rng = random.Random(0)
    values = [rng.lognormvariate(-3, 2) for _ in range(20_000)]
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    sketch.add(0.0)
    values = sorted([*values, 0.0])
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = values[max(0, round(share * len(values)) - 1)]
        assert sketch.percentile(share) == pytest.approx(exact, rel=0.011)
    assert sketch.mean == pytest.approx(sum(values) / len(values))
    assert sum(count for _, count in sketch) == len(values)
    assert sum(1 for _ in sketch) < 1500


def test_failures_of_a_server_that_invents_reasons_are_bounded():
    results = Results()
    for number in range(1000):
        results.fail(f"\x1b[2J{number}" + "x" * 1000)
    assert len(results.failures) == 33
    assert results.num_failed == 1000
    assert all(reason.isprintable() and len(reason) < 100 for reason in results.failures)


@pytest.mark.parametrize(
    "values", [[0.0031], [0.01, 0.011, 0.0124], [1e-5, 3.0, 500.0], [0.2] * 9 + [0.9], [0.0]]
)
def test_histogram_shows_all_values(values):
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    title, *rows = histogram("latency", sketch, 60)
    assert title == f"latency, {len(values)} values"
    cells = [row.partition("|")[2].split() for row in rows]
    assert sum(int(cell[0]) for cell in cells) == len(values)
    assert all(len(cell) == 2 for cell in (cells[0], cells[-1]))
    assert 1 <= len(rows) <= 12
    assert max(map(len, rows)) <= 60
    assert "".join(rows).isascii()


async def test_command_prints_and_writes_the_results(tmp_path):
    async with scripted_router({"": [ANSWER]}) as fleet:
        path = tmp_path / "result.json"
        arguments = ("--requests", "6", "--prompt-tokens", "8-12", "--output-tokens", "30")
        ended = await run_pagestream("bench", fleet.address, *arguments, f"--output={path}")
    assert (ended.code, ended.errors) == (0, "")
    assert "\x1b" not in ended.output
    lines = ended.output.splitlines()
    assert lines[0].startswith("requests     6 in ")
    assert any(line.startswith("failed       0") for line in lines)
    assert "first token, 6 values" in lines
    result = json.loads(path.read_text())
    assert result["url"] == fleet.address
    assert result["requests"]["succeeded"] == 6
    assert result["workload"]["prompt_tokens"] == "8-12"
    latency = result["latencies"]["first_token_seconds"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert sum(count for _, count in latency["histogram"]) == latency["count"] == 6


async def test_interrupted_load_is_reported(tmp_path):
    async with (
        scripted_router({"": ["and on and on"]}) as fleet,
        pagestream_on_terminal(
            *("bench", fleet.address, "--concurrency", "2", "--prompt-tokens", "8"), home=tmp_path
        ) as terminal,
    ):
        await terminal.expect("0 ended, 0 failed, 2 open")
        terminal.type("\x03")
        await terminal.expect("interrupted  2")
        await terminal.expect("milliseconds")
        assert await terminal.exit_code() == 130


@contextlib.asynccontextmanager
async def http_server(answer, context=None):
    """Yields the address of a server that answers everything with the same bytes."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"data: {\n", "BAD_EVENT"),
        (b"data: 7\n", "BAD_EVENT"),
        (b'data: {"choices": [7]}\n', "BAD_EVENT"),
        (b"data: " + b"[" * 40_000 + b"\n", "BAD_EVENT"),
        (b"data: " + b"x" * 100_000, "EVENT_TOO_LONG"),
        (b'data: {"error": {"code": "engine_failed"}}\n', "ENGINE_FAILED"),
        (b'data: {"choices": [{"text": "a"}], "usage": {"completion_tokens": -5}}\n', "NO_FINISH"),
        (b"", "NO_FINISH"),
    ],
)
async def test_answer_that_is_none_is_a_failure(answer, reason, monkeypatch):
    monkeypatch.setattr(http_target, "_MAX_LINE_BYTES", 50_000)
    async with http_server(answer) as address, HttpTarget(address, PLAIN, 1, WORKLOAD) as target:
        with pytest.raises(RequestFailed, match=f"^{reason}$"):
            async for _ in target.ask("small", Request(b"abc", 1, 0), Usage()):
                pass
        with pytest.raises(CommandFailed, match="lists no models"):
            await target.models()


async def test_tokens_that_come_with_the_end_are_counted():
    text = b'data: {"choices": [{"text": "a"}]}\n'
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}\n'
    answer = text + text + usage + b"data: [DONE]\n" + text
    async with http_server(answer) as address, HttpTarget(address, PLAIN, 1, WORKLOAD) as target:
        found = Usage()
        counts = [one async for one in target.ask("small", Request(b"abc", 5, 0), found)]
    assert sum(counts) == 5
    assert found.num_prompt_tokens == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["127.0.0.1:1"], 1, "no router answers at 127.0.0.1:1: "),
        (["http://127.0.0.1:1"], 1, "no router answers at http://127.0.0.1:1: "),
        (["https://127.0.0.1:1"], 1, "no router answers at https://127.0.0.1:1"),
        (["http://127.0.0.1:1", "--tls-name", "a"], 2, "is for plain text, but options of TLS"),
        (["http://localhost"], 2, "the router is 'http://localhost', which is not"),
        (["--prompt-tokens", "9-3"], 2, "--prompt-tokens is '9-3', must be a number of tokens"),
        (["--output-tokens", "many"], 2, "--output-tokens is 'many', must be a number of tokens"),
        (["--rate", "0"], 2, "--rate is 0.0, must be a number from 0.001"),
        (["--output", "/nowhere/x"], 2, "--output /nowhere/x cannot be written: No such file"),
    ],
)
def test_mistake_is_one_line(arguments, code, said, capfd):
    assert main(arguments) == code
    flush_log()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pagestream bench: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


async def test_the_other_port_of_a_router_is_told_apart():
    async with scripted_router({"": [ANSWER]}) as fleet:
        http, grpc = f"127.0.0.1:{fleet.port}", f"http://{fleet.address}"
        at_http = await run_pagestream("bench", http)
        at_grpc = await run_pagestream("bench", grpc)
    assert (at_http.code, at_grpc.code) == (1, 1)
    assert at_http.errors == (
        f"pagestream bench: what answers at {http} does not speak gRPC: give the router's gRPC "
        "port, such as 127.0.0.1:50050\n"
    )
    assert at_grpc.errors == (
        f"pagestream bench: what answers at {grpc} does not speak HTTP/1: if it is the router's "
        "gRPC port, leave out http://\n"
    )


async def test_http_port_with_tls_is_told_apart(tmp_path):
    folder = make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    # Like the router's HTTP port, it offers no HTTP/2.
    async with http_server(b"", context) as address:
        ended = await run_pagestream("bench", address, f"--tls-ca={folder / 'ca.pem'}")
    assert ended.code == 1
    assert f"what answers at {address} does not speak gRPC: " in ended.errors


async def test_requests_that_the_model_cannot_take_are_refused_before_the_load():
    async with scripted_router({"": [ANSWER]}) as fleet:
        ended = await run_pagestream("bench", fleet.address, "--prompt-tokens", "4000-5000")
        assert not fleet.requests
    assert ended.code == 2
    assert "5000 + 64 at most, and small takes 4096 together" in ended.errors
