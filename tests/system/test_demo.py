"""The demo serves real answers through real processes, and leaves none, whatever ends it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine_service.tiny_models import SHAPES, make_model
from tests.fakes import small_tokenizer

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

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """Returns the exit code and the rest of the output."""
        output, _ = self.process.communicate(timeout=seconds)
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
def running_demo(
    folder: Path, *arguments: str, python_options: Sequence[str] = ()
) -> Iterator[Demo]:
    mark = uuid.uuid4().hex
    command = [sys.executable, *python_options, "-m", "examples.demo", "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, *arguments],
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


def cells(label: str, output: str) -> list[str]:
    """Returns what the table's row with that label says, a text for each column."""
    match = re.search(rf"^\W*{re.escape(label)}  +(.*?) *$", output, re.MULTILINE)
    assert match, f"no row {label!r} in:\n{output}"
    return re.split("  +", match[1])


def numbers(label: str, output: str) -> list[float]:
    """Returns all numbers of the table's row with that label."""
    return [
        float(number.replace(",", ""))
        for cell in cells(label, output)
        for number in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)
    ]


def metrics_owners(output: str) -> list[str]:
    """Returns the services whose metrics addresses are shown."""
    pattern = r"^metrics of (\S+): http://127\.0\.0\.1:\d+/metrics$"
    return re.findall(pattern, output, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def shown(folder):
    """What a whole demo printed, its clients' table and its engines'."""
    with running_demo(folder, "--requests", "8") as demo:
        code, output = demo.finish()
        demo.assert_nothing_left()
    assert code == 0, output
    # No terminal, no escape sequences.
    assert "\x1b" not in output
    return output


def test_demo_shows_what_its_clients_saw(shown):
    clients, _ = shown.split("What the engines say")
    assert numbers("requests", clients) == [8]
    assert numbers("ended at their length", clients) == [0]
    assert numbers("ended by an end-of-turn token", clients) == [8]
    (num_tokens,) = numbers("tokens", clients)
    assert 8 * 40 < num_tokens < 8 * 128
    (seconds,) = numbers("seconds", clients)
    assert numbers("tokens per second", clients) == [pytest.approx(num_tokens / seconds, rel=0.05)]
    for latency in ("time to first token", "time between tokens"):
        median, ninetieth = numbers(f"{latency}, p50 / p90", clients)
        assert 0 < median <= ninetieth <= 1000 * seconds, latency


def test_answers_of_the_demo_model_are_right(shown):
    assert cells("right answers", shown) == ["8 of 8, 100%"]
    # The frame breaks the text into lines.
    assert "I am the demo model of Pagestream" in shown


def test_demo_shows_what_its_engines_say(shown):
    _, engines = shown.split("What the engines say")
    num_requests = numbers("requests", engines)
    assert sum(num_requests) == 8
    num_prompt_tokens = numbers("prompt tokens", engines)
    num_cached = numbers("cached prompt tokens", engines)
    # Two prompts, four times each: at least some of the repeats find their prefix.
    assert 0 < sum(num_cached) < sum(num_prompt_tokens)
    # The engines count as the clients were told.
    assert cells("prefix hit rate", engines) == [
        f"{cached / prompt:.0%}" if prompt else "no query"
        for cached, prompt in zip(num_cached, num_prompt_tokens, strict=True)
    ]
    assert numbers("KV blocks in the pool", engines) == [1024, 1024]
    for used, prompt, count in zip(
        numbers("KV blocks in use, peak", engines), num_prompt_tokens, num_requests, strict=True
    ):
        # No more than all of them without a shared block, and some if there were any.
        assert bool(count) <= used <= (prompt + 128 * count) / 16 + count
    assert numbers("KV blocks in use, final", engines) == [0, 0]
    assert numbers("preemptions", engines) == [0, 0]


def test_demo_shows_flat_memory(shown):
    start, peak, final = (
        numbers(f"process memory, {moment}", shown) for moment in ("start", "peak", "final")
    )
    for first, most, last in zip(start, peak, final, strict=True):
        # Two processes with torch; the pool's 112 MiB are touched as they are needed.
        assert 200 < first <= most < first + 160
        assert last <= most
    bars = cells("process memory, over the run", shown)
    assert [len(one) for one in bars] == [16, 16]
    assert all(set(one) <= set("▆▇█") for one in bars)


def test_demo_shows_every_metrics_address(shown):
    assert metrics_owners(shown) == ["router", "engine-0", "engine-1"]
    assert "noise" not in shown


def test_random_weights_make_noise_and_no_right_answer(tmp_path):
    with running_demo(tmp_path, "--model", "random", "--requests", "4") as demo:
        code, output = demo.finish()
        demo.assert_nothing_left()
    assert code == 0, output
    assert output.count("noise, for the weights are random") == 1
    assert cells("right answers", output) == ["0 of 4, 0%"]


@pytest.mark.slow
def test_engines_of_two_ranks_give_the_right_answers(tmp_path):
    with running_demo(tmp_path, "--tensor-parallel-size", "2", "--requests", "8") as demo:
        code, output = demo.finish(seconds=110)
        demo.assert_nothing_left()
    assert code == 0, output
    assert "starting 2 engines of 2 ranks each and a router" in output
    assert cells("right answers", output) == ["8 of 8, 100%"]
    log = (tmp_path / "logs" / "engine-0.log").read_text()
    assert sorted(re.findall(r"model ready .* (rank=\d num_ranks=\d)", log)) == [
        "rank=0 num_ranks=2",
        "rank=1 num_ranks=2",
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as of a real model: weights that transformers wrote, and a tokenizer.

    No token ends an answer, as random weights would draw it now and then.
    """
    path = tmp_path_factory.mktemp("checkpoint") / "tiny-qwen3"
    make_model(path, replace(SHAPES[1], vocab_size=600))
    small_tokenizer.save(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_given_model_is_served_under_its_own_name_and_nobody_knows_its_answers(
    checkpoint, tmp_path
):
    arguments = ("--model", str(checkpoint), "--requests", "4", "--max-tokens", "8")
    with running_demo(tmp_path, *arguments) as demo:
        code, output = demo.finish()
        demo.assert_nothing_left()
    assert code == 0, output
    clients, engines = output.split("What the engines say")
    # It has no end-of-turn token.
    assert numbers("ended at their length", clients) == [4]
    assert numbers("tokens", clients) == [32]
    assert sum(numbers("requests", engines)) == 4
    assert metrics_owners(output) == ["router", "engine-0", "engine-1"]
    assert "random" not in output
    assert "right answers" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert "model=tiny-qwen3 " in (tmp_path / "logs" / "engine-0.log").read_text()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ([], []),
        (["MODEL=a b/c"], ["--model", "a b/c"]),
        (["TP=2"], ["--tensor-parallel-size", "2"]),
        (["MODEL=m", "TP=2"], ["--model", "m", "--tensor-parallel-size", "2"]),
    ],
)
def test_make_demo_passes_its_settings_on(settings, options):
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.ready", "demo"]
    command += settings
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = shlex.split(result.stdout.splitlines()[-1])
    assert shown == [".venv/bin/python", "-m", "examples.demo", *options]


def test_interrupt_while_python_imports_is_quiet(tmp_path):
    with running_demo(tmp_path, python_options=("-X", "importtime")) as demo:
        demo.read_until(r"\| +rich\.console$")
        demo.process.send_signal(signal.SIGINT)
        code, output = demo.finish()
        demo.assert_nothing_left()
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in output
    assert "KeyboardInterrupt" not in output


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
