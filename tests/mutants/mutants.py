"""Mutants: patches of the product, each with the tests that must notice it.

A file `NAME.patch` begins with what is wrong then, and names in lines of their own:

    Red: a test or a file of tests; all of them must fail.
    Red on GPU: the same, for a machine with a CUDA device.
    Says: a pattern that the message of each failure must match.

What follows is a unified diff for the root of the repository, with a few lines of context, so that
it survives a change elsewhere in the file. Where it does not, `git apply --reject` shows what is
left to do.
"""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "shared")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One patch."""

    path: Path
    red: list[str]
    red_on_gpu: list[str]
    says: str
    """Empty: the tests may say anything."""

    @classmethod
    def read(cls, path: Path) -> "Mutant":
        head = path.read_text().partition("\ndiff --git ")[0]

        def lines(key: str) -> list[str]:
            return re.findall(rf"^{key}: (.+)$", head, re.MULTILINE)

        return cls(path, lines("Red"), lines("Red on GPU"), "".join(lines("Says")))

    def check_applies(self) -> None:
        """Raises AssertionError, with what git says, if the patch does not fit the tree."""
        _git_apply(self.path, ROOT, "--check")

    def outcomes(self, tests: list[str], mark: str, folder: Path) -> dict[str, str]:
        """Runs tests on a mutated copy of the tree; returns each one's failure, empty if none."""
        tree = folder / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        _git_apply(self.path, tree)
        report = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark]
        done = subprocess.run(
            [*command, "--junitxml", str(report), *tests],
            cwd=tree,
            capture_output=True,
            text=True,
        )
        # 1: tests ran, and some failed. All else is no mutant that was noticed.
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return {
            f"{case.get('classname')}::{case.get('name')}": _failure(case)
            for case in ET.parse(report).iter("testcase")
        }

    def survivors(self, outcomes: dict[str, str]) -> list[str]:
        """Returns the tests that did not notice."""
        return [
            f"{name}: {failure or 'passed'}"
            for name, failure in outcomes.items()
            if not failure or not re.search(self.says, failure)
        ]


def _failure(case: ET.Element) -> str:
    # An error in a fixture says nothing of the mutant.
    assert case.find("error") is None, ET.tostring(case, "unicode")
    return "\n".join(failure.get("message", "") for failure in case.findall("failure"))


def _git_apply(patch: Path, folder: Path, *options: str) -> None:
    done = subprocess.run(
        ["git", "apply", *options, str(patch)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


MUTANTS = [Mutant.read(path) for path in sorted(Path(__file__).parent.glob("*.patch"))]
