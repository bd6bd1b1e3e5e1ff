import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pagestream import packages
from servicekit.errors import StartupError

ROOT = Path(__file__).parents[2]


def test_modules_are_those_of_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {Requirement(text).name for text in project["optional-dependencies"]["router"]}
    assert extra == set(packages._ROUTER_MODULES)


def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    absent = {"uvicorn", "tokenizers"}
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in absent else object())
    with pytest.raises(StartupError) as caught:
        packages.check_router_packages()
    assert caught.value.message.startswith("packages are not installed: tokenizers, uvicorn; ")
    assert caught.value.message.endswith("-m pip install 'pagestream[router]'")
