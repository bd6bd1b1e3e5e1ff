"""The command line finds its commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from pagestream.commands import COMMANDS

ROOT = Path(__file__).parents[2]


def pagestream(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pagestream", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_help_names_all_commands(arguments):
    done = pagestream(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.summary in done.stdout


def test_version():
    done = pagestream("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("pagestream ")


def test_unknown_command_suggests_the_nearest():
    done = pagestream("ruoter")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pagestream: there is no command 'ruoter'; did you mean router?\n"


def test_options_of_a_command_are_its_own():
    done = pagestream("router", "--port", "x", "--engines", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("router: --port ")
    assert done.stderr.count("\n") == 1
