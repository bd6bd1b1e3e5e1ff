"""Requests for chat completions, and a fleet that answers them, for tests."""

import json

import httpx

from tests.router.http.served_fleet import ServedFleet

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "go"}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é😀"}}\n</tool_call>'
SECOND_CALL = '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g", "description": "Does it."}},
]


class ChatFleet(ServedFleet):
    """A fleet that is asked for chat completions."""

    async def post(self, **fields):
        """Returns the answer to a request."""
        return await self.send(json={"messages": [USER], **fields})

    async def send(self, **request):
        """Returns the answer to a request that may be none."""
        async with httpx.AsyncClient(timeout=20, verify=False) as client:
            return await client.post(f"http://127.0.0.1:{self.port}{PATH}", **request)


def chunks(text):
    """Returns the events of a stream, of which the last must be its end."""
    *events, end, rest = text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def ask(fleet, **fields):
    """Returns the answer to a request that must have one."""
    answer = await fleet.post(**fields)
    assert answer.status_code == 200, answer.text
    return answer


async def whole(fleet, **fields):
    """Returns a whole answer."""
    return (await ask(fleet, **fields)).json()
