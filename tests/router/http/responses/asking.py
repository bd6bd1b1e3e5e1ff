"""A fleet and ways to ask it through the Responses API, for tests."""

import json
from contextlib import asynccontextmanager

import openai

from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.http.serving import serving
from tests.router.pipelines import TOKENIZER
from tests.router.text.tool_templates import QWEN3

PATH = "/v1/responses"


def fleet_of_qwen3() -> FakeFleet:
    """Returns a fleet of a model that thinks and calls."""
    info = model_info(max_model_len=4096, supported_params=ALL_PARAMS, max_logprobs=20)
    fleet = FakeFleet(info)
    fleet.files = small_tokenizer.files(chat_template=QWEN3)
    return fleet


def say(fleet, text, *, is_cut=False):
    """Makes the fleet answer a text, token by token."""
    chunks = [[token_id] for token_id in TOKENIZER.encode_text(text).tolist()]
    fleet.answer(*chunks, *([] if is_cut else [[1]]), stop_token_id=None if is_cut else 1)


def prompt_of(fleet) -> str:
    """Returns the prompt of the latest request."""
    return TOKENIZER.decode(fleet.requests[-1].prompt_token_ids, skip_special_tokens=False)


@asynccontextmanager
async def openai_client(fleet, **options):
    """Yields OpenAI's client of a door."""
    async with (
        serving(fleet, **options) as port,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=20, max_retries=0
        ) as client,
    ):
        yield client


def events_of(body: str) -> list[dict]:
    """Returns the events of a stream, each of which must be named after its type."""
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
