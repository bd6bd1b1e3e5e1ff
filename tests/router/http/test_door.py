"""What all HTTP clients meet, whatever API they use."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest

from router.errors import Draining
from router.types.engine_events import Tokens
from tests.fakes.fake_fleet import FakeFleet
from tests.router.http.serving import client_of, opening, serving

STREAM = (
    b"POST /plain/stream HTTP/1.1\r\nhost: a\r\ncontent-length: 15\r\n\r\n" + b'{"prompt": [5]}'
)


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


@asynccontextmanager
async def connected(port, content=b""):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    try:
        yield reader
    finally:
        writer.close()


@asynccontextmanager
async def streaming(fleet, port):
    """Yields what reads a stream that has begun."""
    async with connected(port, STREAM) as reader:
        fleet.put(Tokens(token_ids=(7,)))
        await reader.readuntil(b"token_ids")
        yield reader


async def test_draining_door_ends_streams_whole_and_takes_no_more(plain_api):
    fleet = FakeFleet()
    async with (
        asyncio.timeout(10),
        opening(fleet) as (door, _, port),
        connected(port) as idle,
        streaming(fleet, port) as reader,
    ):
        door.drain()
        assert await idle.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        fleet.answer([8])
        assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_stopped_door_sends_last_errors_within_its_grace(plain_api):
    fleet = FakeFleet()
    async with (
        asyncio.timeout(10),
        opening(fleet) as (door, _, port),
        streaming(fleet, port) as reader,
    ):
        fleet.put(Draining("the router is exiting"))
        await door.stop(5)
        answer = await reader.read()
    assert b"the router is exiting" in answer
    assert answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", [b"stream", b"whole", b"stuck"])
async def test_stopped_door_leaves_nothing_and_logs_nothing(plain_api, caplog, path):
    caplog.set_level(logging.INFO)
    fleet = FakeFleet()
    num_tasks = len(asyncio.all_tasks())
    async with (
        asyncio.timeout(10),
        opening(fleet) as (door, _, port),
        streaming(fleet, port) as one,
        connected(port) as idle,
    ):
        fleet.is_asked.clear()
        async with connected(port, STREAM.replace(b"stream", path, 1)) as other:
            await fleet.is_asked.wait()
            await door.stop()
            for reader in (one, other, idle):
                assert b"[DONE]" not in await reader.read()
            assert fleet.num_open == 0
            assert len(asyncio.all_tasks()) == num_tasks
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
