"""What a log line looks like, whoever had a say in its text."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protos.wire.printable import escape, is_name
from servicekit.line_writer import LineWriter
from servicekit.log import LineFormatter, LogHandler

ROOT = Path(__file__).parents[2]
FORGED = "2026-11-28 00:00:00,000 INFO router.launch router ready models=forged"
MAX_LINE_BYTES = 4096


def entry(message, *arguments, **options):
    """Returns the lines of an entry, as a terminal or another program would split them."""
    record = logging.LogRecord(
        "router.launch", logging.INFO, __file__, 1, message, arguments, options.get("error")
    )
    return LineFormatter().format(record).splitlines()


def test_label_of_a_process_stands_before_the_name_of_its_logger():
    record = logging.LogRecord("router.launch", logging.INFO, __file__, 1, "ready", (), None)

    [line] = LineFormatter("worker=3").format(record).splitlines()

    assert line.endswith(" INFO worker=3 router.launch ready")


def raised(*messages):
    """Returns an exception as `sys.exc_info` does, each caused by the one before."""
    try:
        try:
            raise ValueError(messages[0])
        except ValueError as error:
            raise RuntimeError(messages[-1]) from error
    except RuntimeError:
        return sys.exc_info()


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\n", r"\n"),
        ("\r", r"\r"),
        ("\x00", r"\x00"),
        ("\x1b", r"\x1b"),
        ("\x0b", r"\x0b"),
        ("\x7f", r"\x7f"),
        ("\x85", r"\x85"),
        ("\x9b", r"\x9b"),
        ("\u2028", r"\u2028"),
        ("\u2029", r"\u2029"),
        ("\u202e", r"\u202e"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_could_forge_a_line_is_escaped_once(character, shown):
    [line] = entry("request placed request_id=%s engine=a:1", f"x{character}{FORGED}")

    assert line.endswith(f"request_id=x{shown}{FORGED} engine=a:1")
    assert line.isprintable()
    assert not is_name(f"a{character}b")


def test_other_texts_are_left_as_they_are():
    text = r"größe=1 模型 C:\new 100% 😀"
    assert escape(text) == text
    assert entry("model=%s", text)[0].endswith(f" INFO router.launch model={text}")


def test_traceback_keeps_its_lines_and_none_of_them_looks_like_an_entry():
    lines = entry("call failed", error=raised(f"a\n{FORGED}", f"b\x1b[2J\r{FORGED}\u2028c\ud800"))

    assert lines[1] == "  Traceback (most recent call last):"
    assert f"  {FORGED}" in lines
    assert rf"  RuntimeError: b\x1b[2J\r{FORGED}\u2028c\ud800" in lines
    assert any(line.endswith("in raised") for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("text", ["x" * 10_000_000, "ü" * 9000, "\n" * 9000, "😀" * 4000])
def test_long_line_is_cut_with_its_length(text):
    [line, *_] = entry("%s", text, error=raised(text))

    assert len(line.encode()) < MAX_LINE_BYTES
    num_characters = int(re.search(r"… \(of (\d+) characters\)$", line)[1])
    assert len(text) < num_characters < len(text) + 100


def test_long_traceback_is_cut_in_the_middle():
    lines = entry("call failed", error=raised("cause", "\n".join(map(str, range(100_000)))))

    assert len(lines) < 300
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1] == "  99999"
    assert all(len(line.encode()) < MAX_LINE_BYTES for line in lines)


@pytest.fixture
def logger():
    """A logger whose lines go to a file; yields both."""
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    logger = logging.Logger("test")  # noqa: LOG001 (of this test alone)
    logger.addHandler(LogHandler(writer))

    def lines():
        assert writer.flush(10)
        return os.read(reading, 1 << 16).decode().splitlines()

    yield logger, lines
    os.close(reading)


def test_warnings_of_one_place_are_counted_from_the_hundredth_on(logger, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log, lines = logger
    for number in range(1000):
        if number == 999:
            now[0] = 10.0
        log.error("accept failed number=%d", number)
    log.error("another place")
    monkeypatch.undo()

    found = [line.partition(",")[2][4:] for line in lines()]

    assert found[:100] == [f"ERROR test accept failed number={number}" for number in range(100)]
    assert found[100:] == [
        "899 more entries like the next one",
        "ERROR test accept failed number=999",
        "ERROR test another place",
    ]


def test_entries_below_a_warning_are_all_kept(logger):
    log, lines = logger
    for _ in range(300):
        log.info("request placed")
    assert len(lines()) == 300


def test_entry_that_cannot_be_formatted_ends_nothing(logger, capfd):
    log, lines = logger
    log.info("number=%d", "none")
    log.info("next")
    assert [line.rpartition(" ")[2] for line in lines()] == ["next"]


def run(script, *prefix):
    done = subprocess.run(
        [*prefix, sys.executable, "-c", f"from servicekit.log import *\n{script}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()


def test_uncaught_exceptions_are_entries_in_their_order():
    code, lines = run(
        "import logging, threading\n"
        "set_up_logging('info')\n"
        "logging.info('first')\n"
        "def fail(text): raise ValueError(text)\n"
        "thread = threading.Thread(target=fail, args=('in a thread\\n',))\n"
        "thread.start(); thread.join()\n"
        "class Failing:\n    def __del__(self): fail('in a finalizer')\n"
        "Failing()\n"
        "print_error('router', ValueError('one\\nline'))\n"
        f"fail('at the end\\n{FORGED}')\n"
    )

    assert code == 1
    heads = [line for line in lines if not line.startswith("  ")]
    assert [head.partition(",")[2][4:] for head in heads if head != heads[3]] == [
        "INFO root first",
        *["CRITICAL uncaught ValueError"] * 3,
    ]
    assert heads[3] == r"router: one\nline"
    assert lines[-1] == f"  {FORGED}"


def test_libraries_log_through_us():
    _, lines = run(
        "import logging\n"
        "library = logging.getLogger('library')\n"
        "library.addHandler(logging.StreamHandler()); library.propagate = False\n"
        "set_up_logging('info')\n"
        "library.warning('a\\nb')\n"
    )

    [line] = lines
    assert line.endswith(r" WARNING library a\nb")


def test_process_without_standard_error_writes_nowhere():
    # The next file that is opened gets its number.
    code, lines = run(
        "import os, sys\n"
        "set_up_logging('info')\n"
        "file = os.open('/dev/null', os.O_RDONLY)\n"
        "logging.error('lost')\n"
        "sys.exit(3 if file == 2 else 4)\n",
        *("sh", "-c", 'exec "$@" 2>&-', "sh"),
    )
    assert code == 3
    assert lines == []
