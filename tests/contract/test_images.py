"""The images hold what their services need, with the packages whose hashes are listed."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.manifests import BASE, K8S, LAPTOP, Deployed, dockerfile_of, ports_of

ROOT = Path(__file__).parents[2]
SERVICES = pytest.mark.parametrize("name", ["router", "engine"])
SOURCES = {
    "router": ["protos", "servicekit", "router", "pagestream"],
    "engine": ["protos", "servicekit", "kernels", "engine_service", "pagestream"],
}
EXTRAS = {"router": ("router",), "engine": ("engine", "smg")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def copied(name):
    """Returns what the first stage copies out of the repository."""
    stage = dockerfile_of(name).split("\nFROM ")[1]
    return " ".join(re.findall(r"^COPY (.+) \S+$", stage, re.MULTILINE)).split()


def requirements(name):
    """Returns the listed packages of an image, each with its hashes."""
    text = (K8S / "images" / f"{name}-requirements.txt").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.partition(" --hash")[0].strip(): line.count("--hash=sha256:") for line in lines}


@SERVICES
def test_image_runs_the_service_as_the_user_of_the_pod(name):
    dockerfile = dockerfile_of(name)
    pod = Deployed(BASE).pod(name)
    module = {"router": "router", "engine": "engine_service"}[name]
    context = pod["spec"]["securityContext"]
    assert f'ENTRYPOINT ["python", "-m", "{module}"]' in dockerfile
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile
    ports = " ".join(map(str, ports_of(pod).values()))
    assert f"EXPOSE {ports}\n" in dockerfile
    # Whether it is reached in plain text, an option has to say.
    assert f"PAGESTREAM_{name.upper()}_" not in dockerfile


@SERVICES
def test_image_holds_its_service_and_the_command_line_alone(name):
    assert copied(name) == ["pyproject.toml", "README.md", "LICENSE", *SOURCES[name]]


@SERVICES
def test_dependencies_are_installed_before_sources_come(name):
    dockerfile = dockerfile_of(name)
    assert dockerfile.index("--require-hashes") < dockerfile.index("COPY pyproject.toml")


@SERVICES
def test_every_dependency_is_listed_with_hashes_in_the_version_of_the_constraints(name):
    listed = requirements(name)
    assert all(listed.values()), "a package has no hash"
    pins = set()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            pin = Requirement(text)
            pins.add((canonicalize_name(pin.name), str(pin.specifier)))
    found = {
        (canonicalize_name((r := Requirement(text)).name), str(r.specifier)) for text in listed
    }
    assert found <= pins, f"run `make lock`: {found - pins}"
    wanted = [*PROJECT["dependencies"], "setuptools"]
    for extra in EXTRAS[name]:
        wanted += PROJECT["optional-dependencies"][extra]
    assert {canonicalize_name(Requirement(text).name) for text in wanted} <= {n for n, _ in found}


def test_image_of_the_engine_can_compile_what_triton_writes():
    dockerfile = dockerfile_of("engine")
    assert re.search(r"apt-get install .*\bgcc libc6-dev\b", dockerfile)
    assert "Python.h" in dockerfile
    assert "TRITON_CACHE_DIR=/cache/" in dockerfile


@SERVICES
def test_docker_sees_what_is_copied_and_little_else(name):
    _, everything, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("**")
    ]
    assert everything == "*"
    patterns = [line.removeprefix("!") for line in kept]
    for path in [*copied(name), f"k8s/images/{name}-requirements.txt"]:
        assert any(fnmatch.fnmatch(path, pattern) for pattern in patterns), path
    for path in ("tests", ".git", ".venv", "docs", "benchmarks"):
        assert not any(fnmatch.fnmatch(path, pattern) for pattern in patterns), path


def test_model_of_the_laptop_is_in_its_image():
    pod = Deployed(LAPTOP).pod("engine")
    model = Deployed(LAPTOP).engine_config().model.model
    [container] = pod["spec"]["containers"]
    assert container["image"].startswith("pagestream-engine-demo:")
    assert f"COPY demo_model/checkpoint {model}\n" in dockerfile_of("engine")


def test_bake_file_builds_each_image_in_the_version_of_the_manifests():
    text = (K8S / "images" / "docker-bake.hcl").read_text()
    [version] = re.findall(r'variable "VERSION" {\s+default = "(.+)"', text)
    assert version == PROJECT["version"]
    built = set(re.findall(r"\$\{REGISTRY\}([\w-]+):\$\{VERSION\}", text))
    images = {
        Deployed(folder).pod(name)["spec"]["containers"][0]["image"]
        for folder in (BASE, LAPTOP)
        for name in ("router", "engine")
    }
    assert images == {f"{image}:{version}" for image in built}
    for path in re.findall(r'dockerfile = "(.+)"', text):
        assert (ROOT / path).is_file()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile_of("engine"), re.MULTILINE)
    assert set(re.findall(r'target += "(.+)"', text)) <= set(stages)
