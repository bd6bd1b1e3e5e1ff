"""Requests for chat completions, and a fleet that answers them, for tests."""

import json

from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.pipelines import TOKENIZER
from tests.router.text.tool_templates import QWEN3

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "go"}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é😀"}}\n</tool_call>'
SECOND_CALL = '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g", "description": "Does it."}},
]


def chat_fleet(template=None, **changes) -> FakeFleet:
    """Returns a fleet with room for a longer chat, whose engines can do all."""
    values = {"max_model_len": 4096, "supported_params": ALL_PARAMS, "max_logprobs": 20}
    fleet = FakeFleet(model_info(**{**values, **changes}))
    if template is not None:
        fleet.files = small_tokenizer.files(chat_template=template)
    return fleet


def tool_fleet() -> FakeFleet:
    """Returns a fleet of a model that thinks and calls tools, as Qwen3 does."""
    return chat_fleet(QWEN3)


def say(fleet, text, index=None):
    """Makes a fleet's next answer a text, token by token."""
    token_ids = TOKENIZER.encode_text(text).tolist()
    fleet.answer(*([token_id] for token_id in token_ids), [1], stop_token_id=1, index=index)


def body(**fields):
    """Returns the body of a request."""
    return {"messages": [USER], **fields}


def chunks(text):
    """Returns the events of a stream, of which the last must be its end."""
    *events, end, rest = text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def prompt_of(fleet, number=0):
    """Returns the text that an engine got."""
    token_ids = fleet.requests[number].prompt_token_ids
    return TOKENIZER.decode(token_ids, skip_special_tokens=False)
