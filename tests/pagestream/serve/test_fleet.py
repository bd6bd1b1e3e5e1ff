"""`pagestream serve` with stand-ins for the services: whatever ends it, no process is left."""

import re
import signal

import pytest

from tests.pagestream.serve.processes import Serve

NUM_PROCESSES = 7
"""The command, three services, and a child of each."""


@pytest.fixture
def serve(tmp_path):
    started = []

    def start(*behaviours, **variables):
        started.append(Serve(tmp_path, "tests.pagestream.serve.owner", *behaviours, **variables))
        return started[-1]

    yield start
    for one in started:
        one.close()


def lines_of(one):
    return one.errors.read_text().splitlines()


def test_ready_fleet_is_announced_and_ends_the_router_before_the_engines(serve):
    one = serve("good", "good", "good")
    one.wait_until_ready()
    assert len(one.processes()) == NUM_PROCESSES

    assert one.end() == 0

    output = one.output.read_text()
    assert "ready: stand-in, 2 engines" in output
    assert re.search(r"^curl http://127.0.0.1:\d+/v1/chat/completions ", output, re.MULTILINE)
    lines = lines_of(one)
    assert next(line for line in lines if "asked" in line) == "router   | asked to end"
    assert sum("asked" in line for line in lines) == 3
    assert any(
        re.fullmatch(r"serve    \| engine-1 is ready on the CPU after \d+\.\d s", line)
        for line in lines
    )
    # What a terminal would show in place, is not shown line by line.
    assert lines.count("engine-0 | loading") == 1
    assert "engine-0 | still loading" not in lines
    assert "engine-0 | nearly there" in lines


def test_ctrl_c_ends_all_while_engines_load(serve):
    one = serve("loading", "loading", "loading")
    one.wait_for(lambda: len(one.processes()) == NUM_PROCESSES)
    one.wait_for(lambda: one.errors.read_text().count("waits") == 3)

    assert one.end(signal.SIGINT) == 0
    assert one.output.read_text() == ""


def test_second_signal_ends_all_at_once(serve):
    one = serve("steady", "steady", "steady")
    one.wait_until_ready()
    one.process.send_signal(signal.SIGINT)
    one.wait_for_error("a second Ctrl-C ends all at once")

    assert one.end(signal.SIGINT) == 128 + signal.SIGINT


def test_service_that_does_not_end_in_time_is_killed(serve, monkeypatch):
    one = serve("good", "steady", GRACE_SECONDS="-4.9")
    one.wait_until_ready()

    assert one.end() == 0
    assert "serve    | engine-0 does not end and is killed" in lines_of(one)


@pytest.mark.parametrize("stage", ["starting", "loading", "ready", "ending"])
def test_killed_command_leaves_no_process(serve, stage):
    behaviour = {"loading": "stubborn", "ending": "steady"}.get(stage, "good")
    one = serve(behaviour, behaviour, FOLLOWING="1")
    match stage:
        case "starting":
            one.wait_for(lambda: len(one.processes()) > 1)
        case "loading":
            one.wait_for(lambda: len(one.processes()) == 5)
        case "ready":
            one.wait_until_ready()
        case "ending":
            one.wait_until_ready()
            one.process.send_signal(signal.SIGTERM)
            one.wait_for_error("a second Ctrl-C ends all at once")

    assert one.end(signal.SIGKILL) == -signal.SIGKILL


def test_engine_that_cannot_start_is_named_with_its_reason_in_one_line(serve):
    one = serve("loading", "loading", "unfit")

    assert one.wait() == 2
    reason = "model 'x': there is no such folder"
    assert [line for line in lines_of(one) if reason in line] == [
        f"serve    | engine-1 cannot start: {reason}"
    ]


@pytest.mark.parametrize("place", ["router", "engine-1"])
def test_service_that_dies_is_named_with_its_last_lines_and_ends_all(serve, place):
    one = serve(*("crashes" if place == name else "good" for name in ("router", "", "engine-1")))

    assert one.wait() == 1
    lines = lines_of(one)
    ends = lines.index(
        f"serve    | {place} was killed, most likely by the system because memory ran out; all end"
    )
    assert "serve    |   no more memory" in lines[ends:]
    assert "serve    |   0000-00-00 00:00:00 INFO stand_in fine" not in lines[ends:]
