"""Gives each test the reader's module, or with `--solutions` the one that solves it."""

import importlib
from types import ModuleType

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--solutions`."""
    parser.addoption("--solutions", action="store_true", help="test examples/guide/solutions")


@pytest.fixture(scope="module")
def exercise(request: pytest.FixtureRequest) -> ModuleType:
    """The module that a file `test_<name>.py` tests: `<name>` of exercises, or of solutions."""
    folder = "solutions" if request.config.getoption("--solutions") else "exercises"
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    return importlib.import_module(f"examples.guide.{folder}.{name}")
