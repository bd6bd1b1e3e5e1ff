"""A fleet and ways to ask it through the Responses API, for tests."""

import asyncio
import json
from contextlib import aclosing

import httpx
import openai

from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.pipelines import TOKENIZER
from tests.router.text.tool_templates import QWEN3

PATH = "/v1/responses"


class ThinkingFleet(FakeFleet):
    """A fleet of a model that thinks and calls functions, as Qwen3 does.

    Attributes:
        port: Where its door listens.
        is_left: Set when a request has ended.
    """

    def __init__(self):
        info = model_info(max_model_len=4096, supported_params=ALL_PARAMS, max_logprobs=5)
        super().__init__(info)
        self.files = small_tokenizer.files(chat_template=QWEN3)
        self.port = 0
        self.is_left = asyncio.Event()

    def reset(self):
        """Forgets all that was asked and put."""
        assert self.num_open == 0
        self.requests.clear()
        self.sample_events.clear()
        self.is_left.clear()
        self.error = None

    async def generate(self, request):
        try:
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    yield event
        finally:
            self.is_left.set()


def say(fleet, text, *, is_cut=False):
    """Makes the fleet answer a text, token by token."""
    chunks = [[token_id] for token_id in TOKENIZER.encode_text(text).tolist()]
    fleet.answer(*chunks, *([] if is_cut else [[1]]), stop_token_id=None if is_cut else 1)


def prompt_of(fleet) -> str:
    """Returns the prompt of the latest request."""
    return TOKENIZER.decode(fleet.requests[-1].prompt_token_ids, skip_special_tokens=False)


def http_client(fleet) -> httpx.AsyncClient:
    """Returns a client of a fleet's door."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{fleet.port}", timeout=20, verify=False)


def openai_client(fleet) -> openai.AsyncOpenAI:
    """Returns OpenAI's client of a fleet's door."""
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{fleet.port}/v1", api_key="none", timeout=20, max_retries=0
    )


def events_of(body: str) -> list[dict]:
    """Returns the events of a stream, each of which must be named after its type."""
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
