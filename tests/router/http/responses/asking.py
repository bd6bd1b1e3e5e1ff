"""Ways to ask a fleet through the Responses API, for tests."""

import json

import httpx
import openai

PATH = "/v1/responses"


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
