"""Lines to a pipe whose reader is slow, gone, or never there."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servicekit.line_writer import LineWriter

ROOT = Path(__file__).parents[2]
LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe():
    """Yields both ends; the writer's thread ends with its process."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def read_all(reading, writer):
    """Returns all that comes until the writer has no more."""
    os.set_blocking(reading, False)
    content, is_last = b"", False
    while not is_last:
        is_last = writer.flush(0.02)
        try:
            while part := os.read(reading, 1 << 16):
                content += part
        except BlockingIOError:
            pass
    return content.decode()


def test_lines_keep_their_order(pipe):
    reading, writing = pipe
    writer = LineWriter(writing)
    for number in range(1000):
        writer.write(f"{number}\n")
    assert read_all(reading, writer).split() == [str(number) for number in range(1000)]


def test_what_nobody_reads_is_dropped_and_counted(pipe):
    reading, writing = pipe
    writer = LineWriter(writing)
    num_lines = 100_000
    for number in range(num_lines):
        writer.write(f"{number:99d}\n")
    assert not writer.flush(0.1), "nobody reads"

    lines = read_all(reading, writer).splitlines()

    # What the pipe took in the middle made room, so that it may be told more than once.
    num_kept = num_passed = 0
    for line in lines:
        found = re.fullmatch(r"(\d+) log entries were dropped: they were not read in time", line)
        if found:
            num_passed += int(found[1])
        else:
            assert int(line) == num_passed
            num_kept += 1
            num_passed += 1
    assert num_passed == num_lines
    assert num_kept < num_lines
    assert 1 << 20 <= num_kept * 100 < 2 << 20

    writer.write("again\n")
    assert read_all(reading, writer) == "again\n"


def test_lines_are_taken_again_as_soon_as_there_is_room(pipe):
    reading, writing = pipe
    writer = LineWriter(writing)
    for _ in range(20_000):
        writer.write(LINE)
    os.read(reading, 1 << 16)
    while writer._num_taken - writer._num_written > (1 << 20) - 1000:
        time.sleep(0.001)
    writer.write("later\n")

    lines = read_all(reading, writer).splitlines()
    assert "log entries were dropped" in lines[-2]
    assert lines[-1] == "later"


def test_reader_that_is_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    writer.write(LINE)
    assert writer.flush(10)


def test_descriptor_that_does_not_block_gets_every_line_whole(pipe):
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LineWriter(writing)
    for _ in range(5000):
        writer.write(LINE)
    assert read_all(reading, writer) == LINE * 5000


def test_forked_process_writes_its_own_lines():
    script = (
        "import os\n"
        "from servicekit.log import *\n"
        "set_up_logging('info')\n"
        "logging.info('parent')\n"
        "flush_log()\n"
        "child = os.fork()\n"
        "logging.info('child' if child == 0 else 'still parent')\n"
        "if child: os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    words = [line.partition("root ")[2] for line in done.stderr.splitlines()]
    assert words[0] == "parent"
    assert sorted(words[1:]) == ["child", "still parent"]


def test_process_whose_log_nobody_reads_still_ends():
    script = (
        "from servicekit.log import *\n"
        "set_up_logging('info')\n"
        "for _ in range(15_000): logging.info('x' * 100)\n"
        "print_error('router', ValueError('last words'))\n"
        "print('done', flush=True)\n"
    )
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)
        os.close(reading)
    assert (done.returncode, done.stdout) == (0, "done\n")
