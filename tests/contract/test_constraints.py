"""constraints.txt pins what pyproject.toml asks for, so that no image or machine differs."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
REQUIREMENTS = [
    requirement
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in extra)]
    if (requirement := Requirement(text)).name != PROJECT["name"]
]
PINS = [
    Requirement(text)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if (text := line.partition("#")[0].strip())
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_requirement_is_pinned_in_its_range(requirement):
    name = canonicalize_name(requirement.name)
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == name]
    assert pins, f"{name} is not in constraints.txt: run `make lock`"
    for pin in pins:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert version.version in requirement.specifier, f"{pin} is stale: run `make lock`"


def test_installed_packages_require_nothing_that_the_pins_forbid():
    pins = {canonicalize_name(pin.name): pin for pin in PINS if _applies(pin)}
    conflicts = [
        f"{name} requires {required}, pinned is {pins[wanted]}"
        for name in pins
        for required in _requirements_of(name)
        if (wanted := canonicalize_name(required.name)) in pins
        and _applies(required)
        and not required.specifier.contains(_version(pins[wanted]), prereleases=True)
    ]
    assert not conflicts, f"run `make lock`: {conflicts}"


def _applies(requirement):
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _requirements_of(name):
    """Those of the version that is installed, which is the pinned one unless a mirror lacks it."""
    try:
        return [Requirement(text) for text in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []


def _version(pin):
    (version,) = pin.specifier
    return version.version


def test_no_pin_names_a_place_or_a_build():
    # A local version such as +cpu would keep images from the build for GPUs, and the other way.
    for pin in PINS:
        assert pin.url is None
        (version,) = pin.specifier
        assert "+" not in version.version
