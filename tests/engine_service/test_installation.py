"""What an engine says of an installation that it cannot run from."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engine_service.installation import (
    EXTRA_MODULES,
    VLLM_PROTOCOL,
    check_installation,
    check_vllm_protocol,
)

ROOT = Path(__file__).parents[2]
OPTIONS = ["--model", "./missing"]
# As `python -m engine_service`, in a process that lacks a module.
WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module("engine_service", run_name="__main__", alter_sys=True)
"""


def start(*command, path=ROOT):
    """Starts an engine with modules from this path alone; returns exit code and standard error."""
    ended = subprocess.run(
        [sys.executable, *command, *OPTIONS],
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr


def make_distribution(folder, name, version):
    """Writes what pip leaves of an installed distribution."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_this_installation_will_do():
    check_installation()


def test_the_modules_are_those_of_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["engine"]]

    assert sorted(EXTRA_MODULES) == sorted(name.replace("-", "_") for name in names)
    assert all(importlib.util.find_spec(name) for name in EXTRA_MODULES)


@pytest.mark.parametrize("name", EXTRA_MODULES)
def test_a_missing_package_is_named_in_one_line(name):
    code, errors = start("-c", WITHOUT, name)

    assert errors == (
        f"engine_service: packages are not installed: {name}; to install all that the engine "
        f"needs, run {sys.executable} -m pip install 'pagestream[engine]'\n"
    )
    assert code == 2


def test_protocol_of_the_vllm_service_is_the_one_of_the_extra():
    check_vllm_protocol()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"]["smg"] == ["==".join(VLLM_PROTOCOL)]


@pytest.mark.parametrize(
    ("found", "has"), [("", "is not installed"), ("0.4.1", "has version 0.4.1")]
)
def test_another_protocol_of_the_vllm_service_is_named(tmp_path, found, has):
    if found:
        make_distribution(tmp_path, "smg_grpc_proto", found)
    code, error = start(
        "-c",
        "import importlib.metadata as metadata, runpy, sys\n"
        "known, folder = metadata.Distribution.from_name, sys.argv.pop(1)\n"
        "def from_name(name):\n"
        "    if name != 'smg-grpc-proto':\n"
        "        return known(name)\n"
        "    return next(iter(metadata.distributions(name=name, path=[folder])))\n"
        "def version(name):\n"
        "    try:\n"
        "        return from_name(name).version\n"
        "    except StopIteration:\n"
        "        raise metadata.PackageNotFoundError(name) from None\n"
        "metadata.version = version\n"
        "runpy.run_module('engine_service', run_name='__main__', alter_sys=True)\n",
        str(tmp_path),
        "--vllm-grpc",
    )
    assert code == 2
    assert f"--vllm-grpc needs the package smg-grpc-proto 0.4.28, which {has}; run" in error
    assert "-m pip install 'pagestream[smg]'" in error
    assert len(error.splitlines()) == 1


def test_llm_names_a_missing_package_too():
    code, errors = start(
        "-c",
        "import sys; sys.modules['torch'] = None\n"
        "from engine_service.llm import LLM\n"
        "LLM('./missing')",
    )

    assert errors.splitlines()[-1].startswith(
        "servicekit.errors.StartupError: packages are not installed: torch; to install"
    )
    assert code == 1


def test_kernels_of_another_distribution_before_ours_is_named(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise ImportError('not to be imported')")
    make_distribution(tmp_path, "kernels", "0.11.0")

    code, errors = start("-m", "engine_service", path=f"{tmp_path}{os.pathsep}{ROOT}")

    assert errors.startswith(
        f"engine_service: the package kernels in {tmp_path / 'kernels'} is of the distribution "
        "kernels 0.11.0, but the engine needs Pagestream's own: run "
    )
    assert f"{sys.executable} -m pip uninstall kernels" in errors
    assert errors.count("\n") == 1
    assert code == 2


def test_kernels_of_another_distribution_over_ours_is_named(tmp_path):
    for name in "engine_service", "kernels", "protos", "servicekit":
        (tmp_path / name).symlink_to(ROOT / name)
    make_distribution(tmp_path, "kernels", "0.11.0")

    code, errors = start("-m", "engine_service", path=tmp_path)

    assert "is of the distribution kernels 0.11.0" in errors
    assert errors.count("\n") == 1
    assert code == 2


def test_kernels_that_is_installed_behind_ours_does_no_harm(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    make_distribution(tmp_path, "kernels", "0.11.0")

    code, errors = start("-m", "engine_service", path=f"{ROOT}{os.pathsep}{tmp_path}")

    assert "./missing" in errors
    assert "kernels" not in errors
    assert code == 2


def test_missing_kernels_is_named():
    code, errors = start("-c", WITHOUT, "kernels")

    assert errors == (
        f"engine_service: the package kernels is not in {ROOT}, beside engine_service; install "
        f"pagestream again: run {sys.executable} -m pip install --force-reinstall --no-deps "
        "pagestream\n"
    )
    assert code == 2
