"""The containers' own arguments, run as local processes that find each other by DNS, answer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.manifests import FLEET, LAPTOP, MTLS

ROOT = Path(__file__).parents[2]
ISOLATED = [
    "unshare",
    *("--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
]


@pytest.fixture
def isolated():
    """A command in front of another that gives it a network of its own."""
    found = shutil.which("unshare") and subprocess.run([*ISOLATED, "true"], check=False)
    if not found or found.returncode:
        # No tool that could be installed: many container runtimes forbid them.
        pytest.skip("this machine allows no user namespaces")
    return ISOLATED


def run_small_cluster(isolated, *arguments):
    """Returns what the routers of a small cluster saw and answered."""
    command = [*isolated, sys.executable, "-m", "tests.system.small_cluster", *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@pytest.mark.parametrize(
    ("overlay", "num_routers", "num_engines"),
    [
        (LAPTOP, 1, 1),
        (FLEET, 1, 1),
        pytest.param(FLEET, 2, 2, marks=pytest.mark.slow),
        pytest.param(MTLS, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_request_goes_through_the_containers_of_an_overlay(
    overlay, num_routers, num_engines, isolated, tmp_path
):
    result = run_small_cluster(isolated, overlay, num_routers, num_engines, tmp_path)
    engines = [f"127.0.1.{number + 1}:50051" for number in range(num_engines)]
    assert result["before"] == [{"tokens": 5, "engines": engines}] * num_routers
    assert [answer["tokens"] for answer in result["after"]] == [5] * num_routers
    # The Secret of the keys was replaced while they ran.
    assert result["revoked"] == (["UNAUTHENTICATED"] * num_routers if overlay == FLEET else [])
    # An engine that is scaled away drains, which is a good end.
    assert result["exit_code"] == (0 if num_engines > 1 else None)


@pytest.mark.slow
def test_cluster_may_have_ipv6_alone(isolated, tmp_path):
    result = run_small_cluster(isolated, LAPTOP, 1, 1, tmp_path, "ipv6")
    assert result["before"] == [{"tokens": 5, "engines": ["[::1]:50051"]}]
