"""The ID of a request: the client's own, or a new one; in answers, errors, logs and on engines."""

import logging

import httpx
import pytest
import pytest_asyncio

from router.errors import QueueFull
from router.types.engine_events import Admitted, Tokens
from tests.fakes.fake_fleet import ENGINE, FakeFleet
from tests.router.http.serving import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = {"prompt": [5]}
MESSAGE = {"model": "small", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}


class Asker:
    """A client of a door, and the fleet behind it."""

    def __init__(self, fleet, port):
        self.fleet = fleet
        self._url = f"http://127.0.0.1:{port}"

    async def ask(self, path, body=None, *, headers=None, event=None):
        """Returns an answer, which the engine gives as the event says."""
        if event is None:
            self.fleet.answer([7, 8])
        else:
            self.fleet.put(*event)
        async with httpx.AsyncClient(base_url=self._url, timeout=20) as client:
            return await client.request("POST" if body else "GET", path, json=body, headers=headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_asker():
    fleet = FakeFleet()
    async with serving(fleet) as port:
        yield Asker(fleet, port)


@pytest.fixture
def asker(module_asker):
    fleet = module_asker.fleet
    fleet.requests.clear()
    while not fleet.events.empty():
        fleet.events.get_nowait()
    return module_asker


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "prefix"),
    [
        ("/v1/completions", PROMPT, "cmpl-"),
        ("/v1/chat/completions", MESSAGE, "chatcmpl-"),
        ("/v1/responses", {"input": "a"}, "resp_"),
        ("/v1/messages", MESSAGE, "msg_"),
    ],
)
async def test_id_of_the_client_is_that_of_the_answer_and_on_the_engine(
    path, body, prefix, is_streamed, asker
):
    body = {**body, "stream": is_streamed}
    answer = await asker.ask(path, body, headers={"X-Request-ID": "trace/1:a"})

    assert (answer.headers["x-request-id"], answer.headers["request-id"]) == ("trace/1:a",) * 2
    assert asker.fleet.requests[0].request_id == "trace/1:a"
    assert f'"{prefix}trace/1:a"' in answer.text


@pytest.mark.parametrize("given", [None, "", "a b", "é".encode("latin-1"), b"\x80", "a" * 257])
async def test_id_that_is_missing_or_malformed_is_made_anew(given, asker):
    headers = {} if given is None else {"x-request-id": given}
    found = [(await asker.ask("/health", headers=headers)).headers for _ in range(2)]

    names = [one["x-request-id"] for one in found]
    assert len(set(names)) == 2
    assert all(len(name) == 32 and name.isalnum() for name in names)


@pytest.mark.parametrize(("given", "name"), [("mine", "mine"), ("mine ü", "header")])
async def test_id_in_the_body_goes_before_that_in_the_head(given, name, asker):
    body = {**PROMPT, "request_id": given}
    answer = await asker.ask("/v1/completions", body, headers={"x-request-id": "header"})

    assert answer.json()["id"] == f"cmpl-{given}"
    assert asker.fleet.requests[0].request_id == given
    assert answer.headers["x-request-id"] == name


@pytest.mark.parametrize(
    ("path", "body", "event", "status"),
    [
        ("/v1/messages", {**MESSAGE, "stream": True}, [QueueFull("full", {})], 429),
        ("/v1/messages", {"a": 1}, None, 400),
        ("/v1/messages/none", None, None, 404),
        ("/v1/messages", None, None, 405),
        ("/v1/chat/completions", {"a": 1}, None, 400),
        ("/v1/completions", PROMPT, [QueueFull("full", {})], 429),
        ("/none", None, None, 404),
        ("/docs", None, None, 200),
    ],
)
async def test_every_answer_has_the_id(path, body, event, status, asker):
    answer = await asker.ask(path, body, headers={"x-request-id": "mine"}, event=event)

    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "mine"
    if "messages" in path:
        assert answer.json()["request_id"] == "mine"


async def test_error_within_a_stream_has_the_id_as_anthropic_has_it(asker):
    begun = Admitted(engine=ENGINE, num_cached_tokens=0, seed=7)
    event = [begun, Tokens(token_ids=[7]), QueueFull("full", {})]
    answer = await asker.ask("/v1/messages", {**MESSAGE, "stream": True}, event=event)

    assert answer.status_code == 200
    assert answer.headers["request-id"] in answer.text


@pytest.mark.parametrize("error", [QueueFull("full", {}), ValueError("broken")])
async def test_errors_are_logged_with_the_id(error, asker, caplog):
    caplog.set_level(logging.DEBUG, "router.http.errors")
    answer = await asker.ask(
        "/v1/completions", PROMPT, headers={"x-request-id": "mine"}, event=[error]
    )

    assert answer.status_code in (429, 500)
    [record] = caplog.records
    assert "request_id=mine path=/v1/completions" in record.getMessage()
