"""The version that services tell."""

import importlib.metadata

import pytest

from servicekit.version import software_version


def test_installed_software_has_its_version() -> None:
    assert software_version() == importlib.metadata.version("pagestream")


def test_bare_source_tree_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert software_version() == "unknown"
