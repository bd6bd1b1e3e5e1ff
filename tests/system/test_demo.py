"""The demo serves real answers through real processes, and leaves none, whatever ends it."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARK = "PAGESTREAM_DEMO_TEST"


class Demo:
    """A running demo; `mark` is in the environment of it and of all that it started."""

    def __init__(self, process: "subprocess.Popen[str]", mark: str) -> None:
        self.process = process
        self.mark = mark

    def read_until(self, pattern: str) -> str:
        """Returns the output up to the line that matches."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if re.search(pattern, line):
                return "".join(lines)
        raise AssertionError(f"no line with {pattern!r} in:\n{''.join(lines)}")

    def finish(self) -> tuple[int, str]:
        """Returns the exit code and the rest of the output."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    def processes(self) -> list[str]:
        """Command lines of all its processes that still run, the demo itself included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # it has just ended, or is another user's
        return found

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)  # a killed process takes a moment to go
        assert self.processes() == []


@contextmanager
def running_demo(folder: Path, *arguments: str) -> Iterator[Demo]:
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "examples.demo", "--folder", str(folder), *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    demo = Demo(process, mark)
    try:
        yield demo
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)


def numbers_after(label: str, output: str) -> list[int]:
    """Returns the numbers of the table's row with that label."""
    match = re.search(rf"^\W*{re.escape(label)}  +(.*)$", output, re.MULTILINE)
    assert match, f"no row {label!r} in:\n{output}"
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", match[1])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def test_demo_shows_what_clients_and_engines_saw(folder):
    with running_demo(folder, "--requests", "8", "--max-tokens", "8") as demo:
        code, output = demo.finish()
        demo.assert_nothing_left()
    assert code == 0, output
    clients, engines = output.split("What the engines say")
    assert numbers_after("requests", clients) == [8]
    assert numbers_after("tokens", clients)[0] <= 64
    assert sum(numbers_after("requests", engines)) == 8
    prompt = numbers_after("prompt tokens", engines)
    cached = numbers_after("of these from the prefix cache", engines)
    # Two prompts, four times each: at least some of the repeats find their prefix.
    assert 0 < sum(cached) < sum(prompt)
    peak = numbers_after("KV blocks in use, peak", engines)
    assert all(0 <= used <= 1024 for used in peak)
    assert numbers_after("KV blocks in use, final", engines) == [0, 0]
    assert numbers_after("preemptions", engines) == [0, 0]
    assert len(re.findall(r"http://127\.0\.0\.1:\d+/metrics$", output, re.MULTILINE)) == 2
    # No terminal, no escape sequences.
    assert "\x1b" not in output


@pytest.mark.parametrize(
    "moment",
    [
        "starting 2 engines",
        "sending 4 chats",
        pytest.param("is ready on", marks=pytest.mark.slow),
        pytest.param("serves on .* until Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_interrupt_at_any_moment_leaves_no_process(folder, moment):
    arguments = ("--requests", "4", "--max-tokens", "64", "--keep-serving")
    with running_demo(folder, *arguments) as demo:
        demo.read_until(moment)
        demo.process.send_signal(signal.SIGINT)
        code, output = demo.finish()
        assert code == 128 + signal.SIGINT
        assert "every service is stopped" in output
        assert "Traceback" not in output
        demo.assert_nothing_left()


def test_service_that_cannot_start_is_shown_with_its_own_words(folder, tmp_path):
    missing = tmp_path / "no-such-model"
    with running_demo(folder, "--model", str(missing)) as demo:
        code, output = demo.finish()
        demo.assert_nothing_left()
    assert code == 1
    assert re.search(r"engine-[01] ended with exit code 2", output)
    assert "no-such-model" in output
    assert "Traceback" not in output
