"""docs/clients.md names the versions of the clients and tools that are run."""

import json
from pathlib import Path

import pytest

from tests.clients.tools import TOOLS

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/clients.md").read_text()
PINS = dict(
    line.partition("#")[0].split()[0].split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line.partition("#")[0]
)
NODE = json.loads((ROOT / "tests/router/http/node/package.json").read_text())["dependencies"]
ROWS = [
    *((f"| `{name}` for Python | ", PINS[name]) for name in ("openai", "anthropic")),
    ("| `langchain-openai` | ", PINS["langchain-openai"]),
    ("| `openai` for Node | ", NODE["openai"]),
    ("| `@anthropic-ai/sdk` for Node | ", NODE["@anthropic-ai/sdk"]),
    *((f"| `{tool.name}` | ", tool.version) for tool in TOOLS),
]


@pytest.mark.parametrize(("row", "version"), ROWS)
def test_version_is_that_of_the_doc(row, version):
    assert f"\n{row}{version} |" in DOC
