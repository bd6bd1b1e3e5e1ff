"""A fleet that says what a test wants, and what the client of Anthropic's API gets of it."""

import json
from contextlib import asynccontextmanager

import anthropic

from router.text.tokenizer import Tokenizer
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.http.serving import client_of, serving
from tests.router.text.tool_templates import QWEN3

TOKENIZER = Tokenizer.from_files(small_tokenizer.files())
END = 1
USER = {"role": "user", "content": "go"}
BASE = {"model": "small", "max_tokens": 500, "messages": [USER]}
TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THINKS = "<think>\nhm\n</think>\n\n"
CALLS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def fleet_of(text=None, *, is_cut=False, chat_template=QWEN3):
    """Returns a fleet whose answer is a text, token by token."""
    fleet = FakeFleet(model_info(max_model_len=2000, num_blocks=200, supported_params=ALL_PARAMS))
    fleet.files = small_tokenizer.files(chat_template=chat_template)
    if text is not None:
        say(fleet, text, is_cut=is_cut)
    return fleet


def say(fleet, text, *, is_cut=False):
    """Puts an answer."""
    chunks = [[token_id] for token_id in TOKENIZER.encode_text(text)]
    if is_cut:
        fleet.answer(*chunks)
    else:
        fleet.answer(*chunks, [END], stop_token_id=END)


def prompt_of(fleet, number=-1):
    """Returns what an engine was asked to go on with."""
    ids = fleet.requests[number].prompt_token_ids
    return TOKENIZER.decode(ids, skip_special_tokens=False)


@asynccontextmanager
async def anthropic_of(fleet, **options):
    """Yields Anthropic's own client of a door in front of a fleet."""
    async with (
        serving(fleet, **options) as port,
        anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{port}", api_key="any", max_retries=0
        ) as client,
    ):
        yield client


async def post(fleet, path="/v1/messages", **changes):
    """Returns the answer to one request."""
    async with client_of(fleet) as client:
        return await client.post(path, json={**BASE, **changes})


async def events(fleet, **changes):
    """Returns the events of a streamed answer, whose names must be those in their data."""
    answer = await post(fleet, stream=True, **changes)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for part in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        found.append(content)
    return found
