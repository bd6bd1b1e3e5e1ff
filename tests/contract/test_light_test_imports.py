"""Tests of what needs no tensors run where there is no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# transformers takes torch where it finds it, and does without where it does not.
SCRIPT = """
import importlib, sys
sys.modules["torch"] = sys.modules["triton"] = None
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


@pytest.mark.parametrize("folder", ["router", "fakes", "servicekit"])
def test_no_test_module_needs_torch(folder):
    files = [*ROOT.glob("tests/conftest.py"), *sorted(ROOT.glob(f"tests/{folder}/**/*.py"))]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    assert len(modules) > 3
    command = [sys.executable, "-c", SCRIPT, *modules]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
