"""An answer that an engine sends at once reads over HTTP as one that comes token by token."""

import json
from collections import defaultdict
from dataclasses import replace

import httpx
import pytest
import pytest_asyncio

from router.types.engine_events import Admitted, Finished, FinishReason, TokenLogprobs, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.served_fleet import ServedFleet
from tests.router.http.serving import serving
from tests.router.pipelines import TOKENIZER
from tests.router.text.tool_templates import QWEN3

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAID = '<think>\nhm\n</think>\n\nI call.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n'
IDS = [*TOKENIZER.encode_text(SAID + "</tool_call>").tolist(), 1]
ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)
FINISHED = Finished(reason=FinishReason.STOP, stop_token_id=1)
CHAT = {"model": "small", "messages": [{"role": "user", "content": "go"}]}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "string"}}}
FUNCTION = {"name": "f", "parameters": PARAMETERS}
ASKED = {
    "/v1/chat/completions": CHAT
    | {"tools": [{"type": "function", "function": FUNCTION}], "logprobs": True}
    | {"stream_options": {"include_usage": True}},
    "/v1/completions": {"model": "small", "prompt": "go", "logprobs": 0}
    | {"stream_options": {"include_usage": True}},
    "/v1/responses": {"model": "small", "input": "go"}
    | {"tools": [{"type": "function", **FUNCTION, "strict": True}]},
    "/v1/messages": CHAT
    | {"max_tokens": 1000, "tools": [{"name": "f", "input_schema": PARAMETERS}]},
}
PIECES = {"content", "text", "delta", "reasoning", "reasoning_content", "arguments"} | {
    "thinking",
    "partial_json",
}
"""Fields of which a stream sends one piece after the other."""
OF_ONE_ANSWER = {"id", "item_id", "call_id", "created", "created_at", "completed_at"} | {
    "sequence_number",
    "request_id",
    "system_fingerprint",
}
"""Fields that differ from answer to answer, or from message to message."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet():
    fleet = ServedFleet(template=QWEN3)
    async with serving(fleet) as fleet.port:
        yield fleet


async def ask(fleet, path, events, **fields):
    """Returns an answer's content, read until its end."""
    fleet.reset()
    fleet.put(*events)
    url = f"http://127.0.0.1:{fleet.port}{path}"
    async with httpx.AsyncClient(timeout=20, verify=False) as client:
        answer = await client.post(url, json=ASKED[path] | fields)
    assert answer.status_code == 200, answer.text
    return answer.text


def leaves(content, path=()):
    """Yields each value in a JSON text that is no list or object, and where it stands."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            if key not in OF_ONE_ANSWER:
                yield from leaves(value, (*path, key))
    else:
        yield path, content


def told(stream):
    """Returns what a stream says: its texts, each put together, and all else, each once."""
    texts, others = defaultdict(str), set()
    for line in stream.splitlines():
        if not line.startswith("data: {"):
            others.add(line)
            continue
        event = json.loads(line.removeprefix("data: "))
        for path, value in leaves(event):
            if path[-1] in PIECES and value is not None:
                texts[event.get("type"), path] += value
            # Not the places of logprobs, nor what only all chunks but the last say.
            elif "logprobs" not in path and (path[-1], value) != ("finish_reason", None):
                others.add((event.get("type"), path, value))
    return texts, others


def apart(*, scored):
    return [ADMITTED, *(tokens([token_id], scored=scored) for token_id in IDS), FINISHED]


def at_once(*, scored):
    last = tokens(IDS, scored=scored, is_last=True)
    return [replace(ADMITTED, is_followed=True), last, FINISHED]


def tokens(token_ids, *, scored, is_last=False):
    logprobs = TokenLogprobs(logprobs=[-1.0] * len(token_ids)) if scored else None
    return Tokens(token_ids=token_ids, logprobs=logprobs, is_last=is_last)


@pytest.mark.parametrize("path", ASKED)
async def test_whole_answer(fleet, path):
    scored = "logprobs" in ASKED[path]
    fields = {"stream_options": None} if "stream_options" in ASKED[path] else {}
    expected, answer = [
        dict(leaves(json.loads(await ask(fleet, path, events(scored=scored), **fields))))
        for events in (apart, at_once)
    ]
    assert answer == expected


@pytest.mark.parametrize("path", ASKED)
async def test_stream(fleet, path):
    scored = "logprobs" in ASKED[path]
    expected, answer = [
        await ask(fleet, path, events(scored=scored), stream=True) for events in (apart, at_once)
    ]
    assert answer.count("data:") < expected.count("data:")
    assert told(answer) == told(expected)
