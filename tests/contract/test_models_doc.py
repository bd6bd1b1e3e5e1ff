"""docs/models.md names the architectures that run, the sizes that kernels take, and its tests."""

import re
from pathlib import Path

from engine_service.models.registry import ARCHITECTURES
from kernels.checks import TRITON_HEAD_DIMS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_table_has_each_architecture_that_runs():
    assert re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)[1:] == sorted(ARCHITECTURES)


def test_sizes_of_heads_are_those_that_kernels_take():
    *sizes, largest = map(str, TRITON_HEAD_DIMS)
    assert f"`head_dim` is {', '.join(sizes)} or {largest};" in DOCUMENT


def test_files_exist():
    paths = re.findall(r"`((?:tests|engine_service)/[\w/.]+)`", DOCUMENT)
    assert len(paths) > 3
    assert [path for path in paths if not (ROOT / path).exists()] == []
