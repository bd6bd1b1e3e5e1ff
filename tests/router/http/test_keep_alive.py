"""Streams that are silent for long: what keeps proxies from cutting them, and clients' patience."""

import asyncio

import anthropic
import httpx
import openai
import pytest

from router.errors import QueueFull
from router.http.answers import EventStream
from router.http.keep_alive import KeepAlive
from router.types.engine_events import Tokens
from tests.fakes.fake_fleet import FakeFleet, model_info
from tests.router.http.serving import serving

CHAT = {"model": "small", "messages": [{"role": "user", "content": "a"}]}
OPTIONS = {"api_key": "any", "max_retries": 0, "timeout": 20}


class SilentFleet(FakeFleet):
    """Says nothing until silences have been broken, at the begin and behind the first token."""

    def __init__(self, breaks):
        super().__init__(model_info(max_model_len=1000, num_blocks=100))
        self._breaks = breaks

    async def generate(self, request):
        await self._breaks.wait_next()
        self.answer([7], [8])
        async for event in super().generate(request):
            yield event
            if event == Tokens(token_ids=[7]):
                await self._breaks.wait_next()


class Breaks:
    """Counts how often a silence was broken."""

    def __init__(self):
        self.number = 0
        self._next = asyncio.Event()

    def count(self):
        self.number += 1
        self._next.set()

    async def wait_next(self):
        self._next.clear()
        async with asyncio.timeout(10):
            await self._next.wait()


@pytest.fixture
def breaks(monkeypatch):
    breaks, real = Breaks(), EventStream.break_silence

    def counted(stream):
        real(stream)
        breaks.count()

    monkeypatch.setattr(EventStream, "break_silence", counted)
    return breaks


async def ask_chat(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        return [chunk async for chunk in stream][-1].choices[0].finish_reason


async def ask_completion(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as client:
        stream = await client.completions.create(model="small", prompt=[5], stream=True)
        return [chunk async for chunk in stream][-1].choices[0].finish_reason


async def ask_response(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as client:
        stream = await client.responses.create(model="small", input="a", stream=True)
        return [event async for event in stream][-1].response.incomplete_details.reason


async def ask_message(url):
    async with (
        anthropic.AsyncAnthropic(base_url=url, **OPTIONS) as client,
        client.messages.stream(**CHAT, max_tokens=2) as stream,
    ):
        return (await stream.get_final_message()).stop_reason


@pytest.mark.parametrize(
    ("ask", "end"),
    [
        (ask_chat, "length"),
        (ask_completion, "length"),
        (ask_response, "max_output_tokens"),
        (ask_message, "max_tokens"),
    ],
)
async def test_clients_read_on_after_silences(ask, end, breaks):
    async with serving(SilentFleet(breaks), silence_seconds=0.03) as port:
        assert await ask(f"http://127.0.0.1:{port}") == end
    assert breaks.number >= 2


@pytest.mark.parametrize(
    ("path", "said"),
    [("/v1/chat/completions", b": keep-alive\n\n"), ("/v1/messages", b"event: ping\n")],
)
async def test_silence_before_the_first_token_is_broken_and_an_error_comes_in_the_stream(
    path, said, breaks
):
    fleet = FakeFleet()
    async with (
        serving(fleet, silence_seconds=0.03) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        client.stream("POST", path, json={**CHAT, "max_tokens": 5, "stream": True}) as answer,
    ):
        parts = answer.aiter_raw()
        assert answer.status_code == 200
        assert (await anext(parts)).startswith(said)
        await breaks.wait_next()
        fleet.put(QueueFull("all engines are full", {}))
        assert b"all engines are full" in b"".join([part async for part in parts])


async def test_response_that_fails_before_its_begin_ends_with_an_error_event(breaks):
    fleet = FakeFleet()
    async with (
        serving(fleet, silence_seconds=0.03) as port,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", **OPTIONS) as client,
    ):
        stream = await client.responses.create(model="small", input="a", stream=True)
        fleet.put(QueueFull("all engines are full", {}))
        [event] = [event async for event in stream]
    assert (event.type, event.sequence_number) == ("error", 0)
    assert event.message == "all engines are full"


class Stream:
    num_silent_ticks = 0
    num_breaks = 0

    def break_silence(self):
        self.num_breaks += 1


async def test_only_silent_streams_get_something_and_without_streams_no_timer_runs():
    keep_alive, silent, busy, gone = KeepAlive(1e6), Stream(), Stream(), Stream()
    for stream in (silent, busy, gone):
        keep_alive.watch(stream)
    keep_alive.forget(gone)
    for _ in range(6):
        keep_alive._tick()
        busy.num_silent_ticks = 0
    assert [one.num_breaks for one in (silent, busy, gone)] == [2, 0, 0]
    for stream in (silent, busy):
        keep_alive.forget(stream)
    keep_alive._timer.cancel()
    keep_alive._tick()
    assert keep_alive._timer is None
