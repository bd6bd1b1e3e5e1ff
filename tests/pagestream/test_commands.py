"""The command line finds its commands."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pagestream import environment
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


def test_options_of_all_commands_are_known_without_what_is_slow_to_import():
    script = (
        "import sys\n"
        "from pagestream.commands import COMMANDS\n"
        "readers = [command.reader() for command in COMMANDS.values()]\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    modules = set(done.stdout.split())
    assert {"pagestream", "router", "engine_service"} <= modules
    assert not modules & {"torch", "transformers", "tokenizers", "numpy", "yaml"}


def test_reader_that_leaves_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "pagestream", "completion", "zsh"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_help_of_a_service_names_it_as_it_was_called():
    for name in ("engine", "router"):
        assert pagestream(name, "--help").stdout.startswith(f"usage: pagestream {name} [OPTIONS]\n")


def test_processes_take_the_packages_of_this_one_and_not_of_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment.sys, "path", [str(tmp_path), *sys.path])
    assert environment.python_modules() == [sys.executable, "-m"]
    monkeypatch.setattr(environment.sys, "path", ["/usr/bin", *sys.path])
    assert environment.python_modules() == [sys.executable, "-P", "-m"]


@pytest.mark.parametrize("arguments", [("engine",), ("completion", "bash")])
def test_command_of_the_other_image_says_what_is_missing(arguments):
    # As in the image of the router.
    script = "import sys; sys.modules['engine_service'] = None\n"
    script += "from pagestream.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"'{arguments[0]}' needs the package 'engine_service'" in line
