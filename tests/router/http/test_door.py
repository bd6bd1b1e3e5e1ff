"""What all HTTP clients meet, whatever API they use."""

import asyncio

import pytest

from tests.fakes.fake_fleet import FakeFleet
from tests.router.http.serving import client_of, serving


async def test_models_are_listed_in_the_form_of_openai():
    async with client_of(FakeFleet()) as client:
        listed = (await client.get("/v1/models")).json()
        [entry] = listed["data"]
        assert listed["object"] == "list"
        assert (entry["id"], entry["object"]) == ("small", "model")
        assert (await client.get("/v1/models/small")).json() == entry


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/models/large", 404, "model is 'large', which no engine serves"),
        ("GET", "/v2", 404, "/v2 is no path of this server"),
        ("POST", "/health", 405, "POST is not a method of /health"),
    ],
)
async def test_wrong_requests_are_told_what_is_wrong(method, path, status, message):
    async with client_of(FakeFleet()) as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


async def test_a_head_that_is_too_large_is_refused_and_others_are_served():
    async with serving(FakeFleet()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
