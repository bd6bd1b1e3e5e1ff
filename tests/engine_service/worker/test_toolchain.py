"""What is said of a machine on which Triton cannot build; Triton itself is not asked to."""

import shutil
import sys
import sysconfig
from types import SimpleNamespace

import pytest

from engine_service.errors import StartupError
from engine_service.worker import toolchain
from engine_service.worker.toolchain import check_toolchain, missing_tool


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with Python's headers, and nothing in PATH but what a test puts there."""
    programs = tmp_path / "bin"
    headers = tmp_path / "include"
    programs.mkdir()
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(headers))
    return SimpleNamespace(programs=programs, headers=headers)


@pytest.fixture
def triton_driver(monkeypatch):
    """Sets whether Triton finds its driver module, or can build it."""

    def simulate(error=None):
        class Driver:
            @property
            def utils(self):
                if error is not None:
                    raise error

        monkeypatch.setattr(toolchain, "driver", SimpleNamespace(active=Driver()))

    return simulate


def add_program(folder, name):
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_a_compiler_and_headers_are_all_it_takes(machine, name):
    add_program(machine.programs, name)

    assert missing_tool() is None
    check_toolchain()


def test_a_missing_compiler_is_named_with_what_to_install(machine):
    assert missing_tool() == (
        "there is no C compiler (gcc or clang) in PATH; install one where the engine runs "
        "(Debian and Ubuntu: apt-get install gcc libc6-dev)"
    )


def test_a_compiler_of_the_environment_counts_and_must_exist(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(add_program(tmp_path, "my-cc")))
    assert missing_tool() is None

    monkeypatch.setenv("CC", "no-cc")
    add_program(machine.programs, "gcc")
    assert missing_tool() == (
        "CC is 'no-cc', but there is no such program; set it to a C compiler or unset it"
    )


def test_missing_headers_are_named_with_what_to_install(machine):
    add_program(machine.programs, "gcc")
    (machine.headers / "Python.h").unlink()

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert missing_tool() == (
        f"there is no Python.h in {machine.headers}; install the headers of this Python where the "
        f"engine runs (Debian and Ubuntu: apt-get install python{version}-dev)"
    )


def test_headers_are_sought_where_triton_seeks_them(monkeypatch):
    # A scheme of Debian's, whose folder of headers is empty.
    sought = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(sysconfig, "get_path", lambda *names: sought.append(names) or "/nowhere")

    assert "there is no Python.h in /nowhere" in missing_tool()
    assert sought == [("include", "posix_prefix")]


@pytest.mark.usefixtures("machine")
def test_what_is_missing_ends_the_start_in_one_line(triton_driver):
    triton_driver(RuntimeError("Failed to find C compiler.\nMore words."))

    with pytest.raises(StartupError, match="there is no C compiler") as refusal:
        check_toolchain()

    assert refusal.value.message.endswith(": Failed to find C compiler.)")


@pytest.mark.usefixtures("machine")
def test_what_is_missing_and_not_needed_is_a_warning(triton_driver, caplog):
    triton_driver()

    check_toolchain()

    (record,) = caplog.records
    assert record.getMessage().startswith("toolchain missing detail=there is no C compiler")
