"""OpenAI's and Anthropic's clients for Node, with the cases of `openai.mjs` and `anthropic.mjs`."""

import json
import os
import shutil
from pathlib import Path

import pytest

from router.errors import NoEngine, QueueFull
from tests.fakes.command import run_command
from tests.router.http.scripted_fleet import ENDLESS, scripted

FOLDER = Path(__file__).parent
FILES = ("package.json", "package-lock.json", "clients.mjs", "openai.mjs", "anthropic.mjs")
INSTALL = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
MAX_REQUESTS = 3
"""As many as the cases have at a time; those that a client has left must not count."""
THOUGHT = "<think>\nhm\n</think>\n\n"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
SCRIPT = {
    "greet": [f"{THOUGHT}Grüße 😀"],
    "weather": [f"{THOUGHT}I call.\n{CALL}"],
    "<tool_response>\nrain": ["It rains."],
    "an object": [f'{THOUGHT}{{"city": "Köln", "sky": "grey"}}'],
    "three": ["a", "b", "c"],
    "count": ["one, two, three"],
    "busy": [QueueFull("too many requests", retry_after=3.0), "There is room."],
    "gone": [NoEngine("no engine is there")],
    "on and on": [ENDLESS],
}


async def output_of(*command, folder):
    """Runs a command, which must succeed, and returns its output."""
    ended = await run_command(command, folder)
    assert ended.code == 0, ended.output + ended.errors
    return ended.output


@pytest.fixture
def folder(tmp_path):
    """A folder to install the clients in."""
    if shutil.which("npm") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("npm is missing")
        pytest.skip("npm is missing: the clients cannot be installed")
    for name in FILES:
        shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path


async def test_clients_for_node(folder):
    await output_of(*INSTALL, folder=folder)
    async with scripted(SCRIPT, max_concurrent_requests=MAX_REQUESTS) as fleet:
        command = ("node", "clients.mjs", f"http://127.0.0.1:{fleet.port}")
        output = await output_of(*command, folder=folder)

    # One line of TAP for each case; a case that fails has failed the command.
    assert output.count("\nok ") == sum(
        (FOLDER / name).read_text().count("\ntest(") for name in FILES
    )
    schemas = [request.sampling_params.grammar for request in fleet.requests]
    schemas = [json.loads(grammar.text) for grammar in schemas if grammar is not None]
    assert [schema["required"] for schema in schemas] == [["city", "sky"]] * 3
