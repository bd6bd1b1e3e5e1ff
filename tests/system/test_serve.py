"""`pagestream serve` with the demo model: the curl line it prints works, and nothing is left."""

import json
import os
import shlex
import signal
import urllib.request

import pytest

from examples.demo.model import CHECKPOINT
from tests.pagestream.serve.processes import Serve

ANY_PORTS = ["--http-port", "0", "--port", "0", "--operations-port", "0"]
SMALL = ["--device", "cpu", "--cpu-threads", "1", "--num-blocks", "64"]


@pytest.fixture
def serve(tmp_path):
    one = Serve(tmp_path, "pagestream", "serve", str(CHECKPOINT), *ANY_PORTS, *SMALL)
    yield one
    one.close()


def send_curl_line_of(serve):
    """Sends what the curl line that it prints would send; returns the answer."""
    (curl,) = [one for one in serve.output.read_text().splitlines() if one.startswith("curl ")]
    _, url, _, header, _, body = shlex.split(curl)
    name, value = header.split(": ")
    request = urllib.request.Request(url, body.encode(), {name: value})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def test_curl_line_is_answered_and_sigterm_ends_all(serve):
    serve.wait_until_ready()

    answer = send_curl_line_of(serve)

    assert "demo model of Pagestream" in answer["choices"][0]["message"]["content"]
    assert serve.end() == 0
    assert "engine-0 | " in serve.errors.read_text()
    assert "router ended" in serve.errors.read_text()


def test_killed_while_its_engine_loads_it_leaves_no_process(serve):
    serve.wait_for_error("loading model=")
    # The command, the engine's two, what multiprocessing adds, and the router.
    serve.wait_for(lambda: len(serve.processes()) >= 4)

    assert serve.end(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.slow
def test_killed_after_a_chat_it_leaves_no_process(serve):
    serve.wait_until_ready()
    send_curl_line_of(serve)
    # Its template has a process in a session of its own.
    assert len({os.getsid(pid) for pid in serve.processes()}) >= 4

    assert serve.end(signal.SIGKILL) == -signal.SIGKILL
