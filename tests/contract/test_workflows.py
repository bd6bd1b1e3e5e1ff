"""The workflows run what must be green, and publish nothing without it."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in PATHS}


def steps(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job.get("steps", ())]


def needed(name):
    """Returns the names of all jobs of a release before one of them."""
    needs = WORKFLOWS["release"]["jobs"][name].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*map(needed, direct))


def test_every_push_runs_the_checks_and_tests():
    assert ".ci/run" in [step.get("run") for step in steps("ci")]
    assert {"push", "pull_request", "workflow_call"} <= set(WORKFLOWS["ci"]["on"])


def test_a_tag_publishes_what_passed_them():
    release = WORKFLOWS["release"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["ci"]["uses"] == "./.github/workflows/ci.yaml"
    publishing = {
        name
        for name, job in release["jobs"].items()
        if "write" in job.get("permissions", {}).values()
    }
    assert publishing == {"images", "publish"}
    for name in publishing:
        assert "ci" in needed(name)


def test_a_release_builds_by_the_bake_file():
    [script] = (step["run"] for step in steps("release") if "bake" in step.get("run", ""))
    [path] = re.findall(r"--file (\S+)", script)
    text = (ROOT / path).read_text()
    targets = set(re.findall(r'^target "(.+)"', text, re.MULTILINE)) - {"common"}
    assert set(script.split("\\\n")[-1].split()) == targets


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_what_others_wrote_is_named_by_its_commit(workflow):
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_jobs_have_the_rights_that_they_name_and_an_end(workflow):
    assert WORKFLOWS[workflow]["permissions"] == {}
    for job in WORKFLOWS[workflow]["jobs"].values():
        assert job["permissions"]
        assert "timeout-minutes" in job or "uses" in job
