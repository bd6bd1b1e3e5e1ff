"""`pagestream serve` for those with a key and a certificate alone, and commands that have both."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from examples.demo.model import CHECKPOINT
from pagestream.environment import API_KEY
from tests.fakes.certificates import make_certificates
from tests.fakes.command import run_command
from tests.pagestream.routers import run_pagestream
from tests.pagestream.serve.processes import ROOT, Serve
from tests.router.access.key_files import KEY, entry, write

SMALL = ["--device", "cpu", "--cpu-threads", "1", "--num-blocks", "64"]
PORTS = ["--port", "0", "--operations-port", "0", "--http-port", "0"]
LOAD = ["--requests=3", "--output-tokens=3", "--no-plot"]


def address_of(text, title):
    """The address that a row of what serve prints has."""
    return re.search(rf"^  {title} +(?:https?://)?([^/ ,\n]+)", text, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Where a fleet serves, and the options with which it is reached."""
    folder = tmp_path_factory.mktemp("serve")
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    keys = write(folder / "keys.yaml", entry())
    (folder / "key").write_text(f"{KEY}\n")
    (made / "wrong-key").write_text("pgs_wrong")
    options = [f"--tls-client-ca={made}/ca.pem", f"--api-keys-file={keys}"]
    for option in ("tls", "operations-tls"):
        options += [f"--{option}-cert={made}/server.pem", f"--{option}-key={made}/server.key"]
    arguments = ["serve", str(CHECKPOINT), *PORTS, *SMALL, *options]
    one = Serve(folder, "pagestream", *arguments)
    try:
        one.wait_until_ready()
        said = one.output.read_text()
        client = f"--tls-cert={made}/client.pem", f"--tls-key={made}/client.key"
        yield SimpleNamespace(
            said=said,
            made=made,
            grpc=address_of(said, "gRPC"),
            http=address_of(said, "HTTP, OpenAI and Anthropic"),
            operations=address_of(said, "metrics and health"),
            engine=address_of(said, "engine-0 on the CPU"),
            engine_operations=re.search(r"engine-0 on .*, https://(.*)/metrics", said)[1],
            tls=(f"--tls-ca={made}/ca.pem", *client),
            key=f"--api-key-file={folder}/key",
        )
        assert one.end() == 0
        assert KEY not in one.output.read_text() + one.errors.read_text()
    finally:
        one.close()


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)


async def run(*arguments, code=0, text=""):
    """Runs a command, which tells no key; returns what it says."""
    ended = await run_pagestream(*arguments, text=text)
    assert ended.code == code, ended.errors
    assert KEY not in ended.output + ended.errors
    return ended


async def top(fleet, *options):
    """Returns what `top` knows of the router and of the engine."""
    pairs = f"{fleet.grpc}={fleet.operations}", f"{fleet.engine}={fleet.engine_operations}"
    operations = f"--router-operations={pairs[0]}", f"--engine-operations={pairs[1]}"
    arguments = (fleet.grpc, *fleet.tls, fleet.key, *operations, "--json", "--interval=0.2")
    found = json.loads((await run("top", *arguments, *options)).output)
    return *found["routers"], *found["engines"]


def test_what_is_printed_is_how_it_is_reached(fleet):
    assert f"ready: {CHECKPOINT.name}, 1 engine\n" in fleet.said
    assert f"https://{fleet.http}/v1" in fleet.said
    assert f"https://{fleet.operations}/metrics" in fleet.said


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_curl_line_is_answered_with_key_and_certificate(fleet, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    (line,) = [line for line in fleet.said.splitlines() if "| curl" in line]
    for name in ("client.pem", "client.key"):
        line = line.replace(name, f"{fleet.made}/{name}")
    answer = await run_command(("sh", "-c", line), ROOT)
    assert "demo model of Pagestream" in answer.output, answer.errors


async def test_chat_is_answered(fleet):
    chat = await run("chat", fleet.grpc, *fleet.tls, fleet.key, text="introduce yourself")
    assert "demo model of Pagestream" in chat.output


@pytest.mark.parametrize("url", ["{0.grpc}", "grpcs://{0.grpc}", "https://{0.http}/v1"])
async def test_load_is_answered(fleet, url, tmp_path):
    report = tmp_path / "report.json"
    options = (*LOAD, *fleet.tls, fleet.key, f"--output={report}")
    await run("bench", url.format(fleet), *options)
    assert json.loads(report.read_text())["requests"]["succeeded"] == 3
    assert KEY not in report.read_text()


async def test_variable_does_instead_of_a_file(fleet, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    await run("bench", fleet.grpc, *LOAD, *fleet.tls)


async def test_table_has_metrics_of_a_port_with_a_certificate(fleet):
    router, engine = await top(fleet, f"--operations-tls-ca={fleet.made}/ca.pem")
    assert (router["num_serving_engines"], router["metrics_error"]) == (1, "")
    assert router["requests_per_second"] is not None
    assert (engine["metrics_error"], engine["tokens_per_second"]) == ("", 0)

    for one in await top(fleet):
        assert one["metrics_error"].endswith("if the port speaks TLS, give --operations-tls-ca")
    for one in await top(fleet, f"--operations-tls-ca={fleet.made}/other/ca.pem"):
        assert "CERTIFICATE_VERIFY_FAILED" in one["metrics_error"]
    named = f"--operations-tls-ca={fleet.made}/ca.pem", "--operations-tls-name=third.test"
    for one in await top(fleet, *named):
        assert "third.test" in one["metrics_error"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("chat {0.grpc} {tls}", "; set PAGESTREAM_API_KEY, or give --api-key-file"),
        ("bench {0.grpc} {tls}", "; set PAGESTREAM_API_KEY, or give --api-key-file"),
        ("bench https://{0.http} {tls}", "; set PAGESTREAM_API_KEY, or give --api-key-file"),
        ("bench {0.grpc}", "; if it speaks TLS, give --tls-ca"),
        (
            "bench http://{0.http}",
            ": Server disconnected without sending a response; if it speaks TLS, give --tls-ca",
        ),
        ("chat {0.http} {tls}", " does not speak gRPC: give the router's gRPC port"),
        (
            "chat {0.grpc} --tls-ca={0.made}/other/ca.pem",
            "; --tls-ca must have the CA of its certificate",
        ),
        (
            "bench https://{0.http} --tls-ca={0.made}/other/ca.pem",
            "; --tls-ca must have the CA of its certificate",
        ),
        (
            "bench https://{0.http} --tls-ca={0.made}/ca.pem",
            "; it may refuse this --tls-cert, or its lack",
        ),
        (
            "bench https://{0.http} {tls} --api-key-file={0.made}/wrong-key",
            "answers GET /v1/models with 401: the API key is not known",
        ),
        ("chat {0.grpc} --tls-ca={0.made}/ca.pem", "; it may refuse this --tls-cert, or its lack"),
        ("chat {0.grpc} {tls} --tls-name=a.test", "; --tls-name says which name its certificate"),
    ],
)
async def test_what_is_missing_is_said_with_what_to_do(fleet, command, said):
    arguments = command.format(fleet, tls=" ".join(fleet.tls)).split()
    ended = await run(*arguments, code=1, text="hello")
    assert said in ended.errors
    # Also none of gRPC's own.
    [line] = ended.errors.splitlines()
    assert line.startswith("pagestream ")
