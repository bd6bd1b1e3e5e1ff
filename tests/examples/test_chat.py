"""The example of an HTTP client."""

import sys
from pathlib import Path

from router.errors import InvalidRequest
from tests.fakes.command import run_command
from tests.router.http.scripted_fleet import scripted

ROOT = Path(__file__).parents[2]
SCRIPT = {
    "introduce": ["Grüße,\nich bin es. 😀"],
    "fail": [InvalidRequest("too much is asked", {})],
}


async def output_of(*arguments):
    """Runs the example; returns its exit code, output and error output."""
    return await run_command((sys.executable, "examples/chat.py", *arguments), ROOT, 60)


async def test_example_prints_the_answer_or_why_there_is_none():
    async with scripted(SCRIPT) as fleet:
        url = f"http://127.0.0.1:{fleet.port}/v1"
        assert await output_of(url) == (0, "Grüße,\nich bin es. 😀\n", "")
        code, output, errors = await output_of(url, "fail")

    assert (code, output) == (1, "")
    assert errors.startswith(f"{url}: ")
    assert "too much is asked" in errors
