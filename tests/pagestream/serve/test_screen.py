"""What a person sees of `pagestream serve`, on a terminal and elsewhere."""

import os
import re
import shutil

import pytest

from pagestream.serve import screen as screen_module
from pagestream.serve.plan import Plan, Service
from pagestream.serve.screen import Screen, announcement, reason, telling


def service(name):
    return Service(name=name, arguments=(), address="a:1", operations_address="a:2", place="GPU 0")


ENGINE, ROUTER = service("engine-0"), service("router")
PLAN = Plan(
    model="m", engines=(ENGINE,), router=ROUTER, http_address="127.0.0.1:8000", grace_seconds=30
)
INFO = "2026-11-29 12:00:00,000 INFO engine_service weights loaded files=1"
WARNING = "2026-11-29 12:00:00,000 WARNING engine_service toolchain missing"


class Terminal:
    """Stands in for a LineWriter, and obeys what moves the cursor up."""

    def __init__(self, descriptor):
        self.lines = []

    def write(self, text):
        for part in re.split(r"(\x1b\[\d+F\x1b\[J)", text):
            if up := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part):
                del self.lines[-int(up[1]) :]
            else:
                self.lines += part.splitlines()

    def flush(self, seconds):
        return True


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(screen_module, "LineWriter", Terminal)
    monkeypatch.setattr(screen_module.time, "monotonic", lambda: 5.0)

    def start(*, is_terminal, columns=80):
        monkeypatch.setattr(screen_module.sys.stderr, "isatty", lambda: is_terminal, raising=False)
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: size)
        monkeypatch.setenv("TERM", "xterm")
        screen = Screen(PLAN)
        return screen, screen._errors.lines

    return start


def test_terminal_shows_the_state_of_each_service_in_place(make):
    screen, lines = make(is_terminal=True)
    assert lines == ["engine-0     0 s  starting", "router       0 s  starting"]

    screen.show_line(ENGINE, INFO, False)
    screen.show_line(ROUTER, WARNING, False)
    screen.show_line(ENGINE, "fetching:  50%", True)
    assert lines == ["engine-0     0 s  fetching:  50%", "router       0 s  waits for the engines"]


def test_terminal_keeps_warnings_and_what_is_no_entry(make):
    screen, lines = make(is_terminal=True)
    screen.show_line(ENGINE, WARNING, False)
    screen.show_line(ENGINE, "Traceback", False)
    assert lines[:2] == [f"engine-0 | {WARNING}", "engine-0 | Traceback"]
    assert len(lines) == 4


def test_terminal_shows_all_lines_once_all_are_ready(make):
    screen, lines = make(is_terminal=True)
    screen.show_ready(ENGINE)
    screen.show_ready(ROUTER)
    screen.announce("ready")
    screen.show_line(ENGINE, INFO, False)
    assert lines == [
        "engine-0 is ready on GPU 0 after 0.0 s",
        "router is ready on GPU 0 after 0.0 s",
        f"engine-0 | {INFO}",
    ]


def test_line_of_progress_fits_the_terminal(make):
    screen, lines = make(is_terminal=True, columns=20)
    screen.show_line(ENGINE, INFO, False)
    assert [len(line) for line in lines] == [19, 19]


def test_pipe_gets_each_line_with_its_service_and_little_progress(make):
    screen, lines = make(is_terminal=False)
    screen.show_line(ENGINE, INFO, False)
    for percent in range(100):
        screen.show_line(ENGINE, f"fetching: {percent} %", True)
    screen.tick()
    screen.say("engine-0 is there")
    assert lines == [
        f"engine-0 | {INFO}",
        "engine-0 | fetching: 0 %",
        "serve    | engine-0 is there",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_reason_of_a_service_that_cannot_start_is_left_to_the_command(make, is_terminal):
    screen, lines = make(is_terminal=is_terminal)
    before = list(lines)
    screen.show_line(ENGINE, "engine_service: model 'x': there is no such folder", False)
    assert lines == before


def test_reason_is_the_last_that_a_service_gave():
    lines = [INFO, "engine_service: model 'x': there is no such folder", "server gone"]
    assert reason(lines) == "model 'x': there is no such folder"
    assert reason(["killed"]) == "killed"


def test_lines_that_tell_why_a_service_ended_are_those_that_are_no_progress():
    assert telling([INFO, WARNING, "Traceback", "  line", INFO]) == [WARNING, "Traceback", "  line"]
    assert telling([f"{INFO}{n}" for n in range(9)]) == [f"{INFO}{n}" for n in (6, 7, 8)]


def test_announcement_says_where_all_serve():
    assert announcement(PLAN, "demo", "curl x") == (
        "\nready: demo, 1 engine\n\n"
        "  HTTP, OpenAI and Anthropic  http://127.0.0.1:8000/v1\n"
        "  gRPC                        a:1\n"
        "  metrics and health          http://a:2/metrics\n"
        "  engine-0 on GPU 0           a:1, http://a:2/metrics\n"
        "\ncurl x\n"
        "pagestream top a:1 --router-operations a:1=a:2 --engine-operations a:1=a:2\n"
        "\nCtrl-C ends all.\n\n"
    )
