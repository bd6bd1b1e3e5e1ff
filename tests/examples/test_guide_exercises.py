"""The guide's exercises: their tests pass with the solutions, and fail without."""

import re
import subprocess
import sys

from examples.guide.pages import FOLDER

ROOT = FOLDER.parents[1]
GUIDE = ROOT / "examples" / "guide"
COMMAND = [sys.executable, "-m", "pytest", "-q", "examples/guide/exercises"]


def files(folder, pattern="step_*.py"):
    return {path.name for path in (GUIDE / folder).glob(pattern)}


def run(*options):
    return subprocess.run([*COMMAND, *options], cwd=ROOT, capture_output=True, text=True)


def test_each_step_has_an_exercise_with_a_solution():
    assert files("exercises") == files("solutions") == files(".")
    tests = {name.removeprefix("test_") for name in files("exercises", "test_step_*.py")}
    assert tests == files("exercises")


def test_solutions_pass():
    solved = run("--solutions")
    assert solved.returncode == 0, solved.stdout


def test_unsolved_exercises_fail():
    failed = re.findall(r"^FAILED \S+/test_(\w+\.py)::", run().stdout, re.MULTILINE)
    assert set(failed) == files("exercises")
