"""Requests for chat completions, and a fleet that answers them, for tests."""

import asyncio
import json
from contextlib import aclosing

import httpx

from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.pipelines import TOKENIZER

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "go"}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é😀"}}\n</tool_call>'
SECOND_CALL = '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g", "description": "Does it."}},
]


class ChatFleet(FakeFleet):
    """A fleet with room for a longer chat, whose engines can do all.

    Attributes:
        port: Where its door listens.
        is_left: Set when a request has ended.
    """

    def __init__(self, *, template=None):
        super().__init__(
            model_info(max_model_len=4096, supported_params=ALL_PARAMS, max_logprobs=20)
        )
        if template is not None:
            self.files = small_tokenizer.files(chat_template=template)
        self.port = 0
        self.is_left = asyncio.Event()

    def reset(self):
        """Forgets all that was asked and put."""
        assert self.num_open == 0
        self.requests.clear()
        self.sample_events.clear()
        self.is_asked.clear()
        self.is_left.clear()

    async def generate(self, request):
        try:
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    yield event
        finally:
            self.is_left.set()

    async def post(self, **fields):
        """Returns the answer to a request."""
        return await self.send(json={"messages": [USER], **fields})

    async def send(self, **request):
        """Returns the answer to a request that may be none."""
        async with httpx.AsyncClient(timeout=20, verify=False) as client:
            return await client.post(f"http://127.0.0.1:{self.port}{PATH}", **request)


def say(fleet, text, index=None):
    """Makes a fleet's next answer a text, token by token."""
    token_ids = TOKENIZER.encode_text(text).tolist()
    fleet.answer(*([token_id] for token_id in token_ids), [1], stop_token_id=1, index=index)


def chunks(text):
    """Returns the events of a stream, of which the last must be its end."""
    *events, end, rest = text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def prompt_of(fleet, number=0):
    """Returns the text that an engine got."""
    token_ids = fleet.requests[number].prompt_token_ids
    return TOKENIZER.decode(token_ids, skip_special_tokens=False)


async def ask(fleet, **fields):
    """Returns the answer to a request that must have one."""
    answer = await fleet.post(**fields)
    assert answer.status_code == 200, answer.text
    return answer


async def whole(fleet, **fields):
    """Returns a whole answer."""
    return (await ask(fleet, **fields)).json()
