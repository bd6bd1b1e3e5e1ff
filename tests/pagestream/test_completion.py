"""The scripts of `pagestream completion` know all commands, options and choices."""

import dataclasses
import shutil
import subprocess

import pytest

from engine_service.config import ModelOptions
from pagestream.commands import COMMANDS
from pagestream.completion.command import main
from pagestream.completion.options import SHELLS
from pagestream.completion.scripts import SCRIPTS
from pagestream.completion.words import Value, words_of

WORDS = words_of(COMMANDS)
TRY = """
compopt() { :; }  # works in a completion only
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _pagestream; echo "${COMPREPLY[@]}"; }
"""


def test_every_option_of_a_service_is_known():
    names = {option.name for option in WORDS["engine"].options}
    for field in dataclasses.fields(ModelOptions):
        assert f"--{field.name.replace('_', '-')}" in names
    assert {"--help", "--config", "--no-enforce-eager"} <= names


def test_options_know_what_stands_behind_them():
    options = {option.name: option for option in WORDS["serve"].options}
    assert options["--log-level"].choices == ("debug", "info", "warning", "error")
    assert options["--chat-template"].value is Value.PATH
    assert options["--port"].value is Value.TEXT
    assert options["--enforce-eager"].value is Value.NONE
    assert WORDS["completion"].choices == SHELLS
    # One of two values without a name.
    assert WORDS["keys"].choices == ("create", "list", "revoke")


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_all_and_the_shell_can_read_it(shell, tmp_path):
    script = SCRIPTS[shell](WORDS)
    for name, words in WORDS.items():
        assert name in script
        for option in words.options:
            assert option.name.removeprefix("--") in script
    if program := shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(script)
        subprocess.run([program, "-n", str(file)], check=True, timeout=30)


def test_bash_completes_commands_options_choices_and_files(tmp_path):
    (tmp_path / "a b.yaml").touch()
    attempts = [
        ("", f"{' '.join(COMMANDS)} --help --version"),
        ("serve --max-n", "--max-num-seqs --max-num-batched-tokens"),
        ("serve --log-level ''", "debug info warning error"),
        ("serve --log-level w", "warning"),
        ("serve --config a", "a b.yaml"),
        ("serve a", "a b.yaml"),
        ("serve --port ''", ""),
        ("completion ''", "bash zsh fish"),
        ("keys r", "revoke"),
    ]
    lines = "\n".join(f"try pagestream {words or repr('')}" for words, _ in attempts)
    done = subprocess.run(
        ["bash", "-c", f"{SCRIPTS['bash'](WORDS)}{TRY}{lines}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [expected for _, expected in attempts]


def test_command_prints_the_script(capsys):
    assert main(["fish"]) == 0
    assert capsys.readouterr().out == SCRIPTS["fish"](WORDS)
