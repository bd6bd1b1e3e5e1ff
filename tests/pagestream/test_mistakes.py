"""Plausible mistakes on the command line: each gets one line that says what to do.

They are in mistakes.txt; a new command adds its own.
"""

import os
import re
import socket
import sys
from pathlib import Path

import pytest

import pagestream.serve.plan
import router.__main__
from pagestream.__main__ import main
from servicekit.log import flush_log

FILE = Path(__file__).with_name("mistakes.txt")
MISTAKES = re.findall(r"^\$ (.+)\n(.+)$", FILE.read_text(encoding="utf-8"), re.MULTILINE)
VARIABLE = re.compile(r"[A-Z_]+=")


@pytest.fixture
def explain(tmp_path, monkeypatch, capfd):
    """Runs a command line in this process; returns what it writes to standard error."""
    # It would hide torch from the tests that follow.
    monkeypatch.setattr(router.__main__, "do_without_torch", lambda: None)
    monkeypatch.setattr(pagestream.serve.plan, "count_gpus", lambda: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("port: 1\nmax-model-length: 32k\n")
    for name in [name for name in os.environ if name.startswith(("PAGESTREAM_", "CUDA_"))]:
        monkeypatch.delenv(name)

    def run(line):
        words = line.split()
        while VARIABLE.match(words[0]):
            monkeypatch.setenv(*words.pop(0).split("="))
        monkeypatch.setattr(sys, "argv", ["pagestream", *words])
        assert main() == 2
        flush_log()
        written = capfd.readouterr()
        assert written.out == ""
        return written.err

    return run


@pytest.mark.parametrize(("line", "expected"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_gets_one_line_that_says_what_to_do(line, expected, explain):
    with socket.create_server(("127.0.0.1", 0)) as used:
        written = explain(line.replace("USED", str(used.getsockname()[1])))
    pattern = ".*".join(map(re.escape, expected.split("…")))
    assert re.fullmatch(f"{pattern}\n", written), written


def test_file_holds_forty_at_least():
    assert len(MISTAKES) >= 40
    assert len(set(MISTAKES)) == len(MISTAKES)
