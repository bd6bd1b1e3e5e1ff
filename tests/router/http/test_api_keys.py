"""HTTP requests with and without API keys, and the errors of each API."""

import asyncio
import json

import pytest

from router.access.keyring import Keyring
from router.types.engine_events import Admitted, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.access.key_files import KEY, OTHER, entry, write
from tests.router.http.served_fleet import ServedFleet, say
from tests.router.http.serving import client_of, serving

A = {"authorization": f"Bearer {KEY}"}
B = {"x-api-key": OTHER}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "model": "small"}
ASKED = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/small", None),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/messages", CHAT),
    ("POST", "/v1/messages/count_tokens", {k: CHAT[k] for k in ("messages", "model")}),
    ("POST", "/v1/completions", {"prompt": "hi", "model": "small", "echo": True}),
    ("POST", "/v1/completions", {"prompt": [80], "model": "small", "echo": True}),
    ("POST", "/v1/responses", {"input": "hi", "model": "small"}),
    ("POST", "/tokenize", {"prompt": "hi", "model": "small"}),
    ("POST", "/detokenize", {"tokens": [80], "model": "small"}),
]


@pytest.fixture
def keyring(tmp_path):
    path = write(tmp_path / "keys", entry(), entry(OTHER, "b", models="[other]"))
    return Keyring(path)


async def test_every_endpoint_needs_a_key_and_a_model_that_it_may_use(keyring):
    fleet = ServedFleet()
    async with client_of(fleet, keyring=keyring) as client:
        for method, path, body in ASKED:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
                answer = await client.request(method, path, json=body, headers=headers)
                error = answer.json()["error"]
                assert (answer.status_code, error["type"]) == (401, "authentication_error"), path
                if "messages" in path:
                    assert answer.json()["type"] == "error"
                else:
                    assert error["code"] == "invalid_api_key"
            assert fleet.requests == []
            answer = await client.request(method, path, json=body, headers=B)
            if path == "/v1/models":
                assert answer.json()["data"] == []
            else:
                assert (answer.status_code, fleet.requests) == (404, [])
            say(fleet, "a")
            answer = await client.request(method, path, json=body, headers=A)
            assert answer.status_code == 200, (path, answer.text)
            fleet.requests.clear()
            while not fleet.events.empty():
                fleet.events.get_nowait()


async def test_body_of_a_stranger_is_not_awaited(keyring):
    head = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
    async with serving(ServedFleet(), keyring=keyring) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    # The rest would be taken for another request.
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("path", ["/health", "/version", "/docs", "/openapi.json"])
async def test_load_balancers_and_readers_need_no_key(keyring, path):
    async with client_of(ServedFleet(), keyring=keyring) as client:
        assert (await client.get(path)).status_code == 200


async def test_priority_is_bounded(keyring):
    async with client_of(ServedFleet(), keyring=keyring) as client:
        body = {**CHAT, "priority": 1}
        answer = await client.post("/v1/chat/completions", json=body, headers=A)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_answers_of_a_revoked_key_end(keyring, tmp_path, path):
    fleet = ServedFleet()
    async with client_of(fleet, keyring=keyring) as client:
        fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1), Tokens(token_ids=[80]))
        body = {**CHAT, "stream": True}
        async with client.stream("POST", path, json=body, headers=A) as answer:
            lines = answer.aiter_lines()
            while "delta" not in await anext(lines):
                pass
            write(tmp_path / "keys")
            await keyring.refresh()
            rest = [line async for line in lines if line.startswith("data: {") and "error" in line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["message"] == 'the API key "a" has been revoked'
        assert fleet.num_open == 0


async def test_whole_answer_of_a_revoked_key_is_401(keyring, tmp_path):
    fleet = ServedFleet()
    async with client_of(fleet, keyring=keyring) as client:
        asked = asyncio.create_task(client.post("/v1/messages", json=CHAT, headers=A))
        await fleet.is_asked.wait()
        write(tmp_path / "keys")
        await keyring.refresh()
        answer = await asked
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


async def test_key_over_its_limit_is_429_with_retry_after(tmp_path):
    path = write(tmp_path / "keys", entry(requests_per_minute=1))
    async with client_of(ServedFleet(), keyring=Keyring(path, clock=lambda: 5.0)) as client:
        asked = {"prompt": "hi", "model": "small"}
        assert (await client.post("/tokenize", json=asked, headers=A)).status_code == 200
        for path in ("/tokenize", "/v1/completions"):
            answer = await client.post(path, json=asked, headers=A)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
