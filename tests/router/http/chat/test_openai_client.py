"""Chat completions with OpenAI's own client."""

import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest

from router.errors import EngineError, NoEngine, QueueFull
from router.types.engine_events import Admitted, TokenLogprobs, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.chat.chats import CALL, SECOND_CALL, TOOLS, ChatFleet
from tests.router.http.served_fleet import say
from tests.router.http.serving import serving
from tests.router.pipelines import TOKENIZER

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "go"}]
ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)


def client_of(fleet, max_retries=0):
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{fleet.port}/v1",
        api_key="none",
        max_retries=max_retries,
        timeout=20,
    )


async def create(client, **fields):
    fields = {"model": "small", "messages": MESSAGES, **fields}
    return await client.chat.completions.create(**fields)


async def test_chat(fleet):
    say(fleet, "Grüße")
    async with client_of(fleet) as client:
        answer = await create(client, max_completion_tokens=20, seed=1, stop=["\n"], user="me")

    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Grüße")
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert answer.model == "small"
    assert answer.system_fingerprint.startswith("fp_")


async def test_stream(fleet):
    say(fleet, "the quick fox")
    async with client_of(fleet) as client:
        stream = await create(client, stream=True, stream_options={"include_usage": True})
        *parts, last = [chunk async for chunk in stream]

    assert "".join(part.choices[0].delta.content or "" for part in parts) == "the quick fox"
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.prompt_tokens_details.cached_tokens) == ([], 16)


async def test_stream_that_the_client_puts_together(tool_fleet):
    say(tool_fleet, f"<think>\nhm\n</think>\n\nI call.\n{CALL}{SECOND_CALL}")
    async with (
        client_of(tool_fleet) as client,
        client.chat.completions.stream(model="small", messages=MESSAGES, tools=TOOLS) as stream,
    ):
        answer = await stream.get_final_completion()

    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I call.")
    functions = [call.function for call in choice.message.tool_calls]
    assert [function.name for function in functions] == ["f", "g"]
    assert [json.loads(function.arguments) for function in functions] == [{"x": "é😀"}, {}]


async def test_tools_and_their_results(tool_fleet):
    say(tool_fleet, f"<think>\nhm\n</think>\n\n{CALL}")
    say(tool_fleet, "done")
    async with client_of(tool_fleet) as client:
        called = await create(client, tools=TOOLS, tool_choice="auto")
        message = called.choices[0].message
        assert (message.content, message.reasoning, message.reasoning_content) == (None, "hm", "hm")
        [call] = message.tool_calls
        assert call.function.name == "f"
        result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        messages = [*MESSAGES, message, result]
        answer = await create(client, messages=messages, tools=TOOLS)

    assert answer.choices[0].message.content == "done"


class Step(pydantic.BaseModel):
    colour: Literal["red", "blue"]


async def test_json_schema(fleet):
    say(fleet, '{"colour": "red"}')
    async with client_of(fleet) as client:
        answer = await client.chat.completions.parse(
            model="small", messages=MESSAGES, response_format=Step
        )

    assert answer.choices[0].message.parsed == Step(colour="red")
    grammar = fleet.requests[0].sampling_params.grammar
    assert grammar.form == "json_schema"
    assert json.loads(grammar.text)["properties"]["colour"]["enum"] == ["red", "blue"]


async def test_logprobs(fleet):
    token_ids = TOKENIZER.encode_text("字").tolist()
    for token_id in token_ids:
        scored = TokenLogprobs(logprobs=[-1.5], top_token_ids=[token_id], top_logprobs=[-1.5])
        fleet.put(*([ADMITTED] if token_id == token_ids[0] else []))
        fleet.put(Tokens(token_ids=[token_id], logprobs=scored))
    say(fleet, "")
    async with client_of(fleet) as client:
        answer = await create(client, logprobs=True, top_logprobs=1)

    entries = answer.choices[0].logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "字"
    assert {entry.logprob for entry in entries} == {-1.5}
    assert [entry.top_logprobs[0].bytes for entry in entries] == [e.bytes for e in entries]


async def test_several_choices(fleet):
    for index, text in enumerate("abc"):
        say(fleet, text, index=index)
    async with client_of(fleet) as client:
        answer = await create(client, n=3)

    assert [choice.message.content for choice in answer.choices] == ["a", "b", "c"]


async def test_stop_text(fleet):
    say(fleet, "one, two")
    async with client_of(fleet) as client:
        answer = await create(client, stop=[", "])

    assert answer.choices[0].message.content == "one"
    assert answer.choices[0].finish_reason == "stop"


async def test_errors_are_exceptions_of_their_own(fleet):
    for error in (QueueFull("full"), NoEngine("none")):
        fleet.put(error)
    async with client_of(fleet) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await create(client, temperature=200)
        with pytest.raises(openai.NotFoundError) as unknown:
            await create(client, model="large")
        with pytest.raises(openai.RateLimitError):
            await create(client)
        with pytest.raises(openai.InternalServerError) as none:
            await create(client)

    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    assert unknown.value.code == "model_not_found"
    assert none.value.status_code == 503


async def test_error_in_the_middle_of_a_stream_is_an_exception(fleet):
    lost = NoEngine("the engine is gone").status
    fleet.put(ADMITTED, Tokens(token_ids=TOKENIZER.encode_text("a").tolist()), EngineError(lost))
    async with client_of(fleet) as client:
        stream = await create(client, stream=True)
        assert (await anext(stream)).choices[0].delta.content == ""
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError, match="the engine is gone"):
            await anext(stream)


@pytest.mark.slow
async def test_request_that_finds_no_room_is_sent_again_when_it_is_told_to():
    fleet = ChatFleet()
    async with (
        serving(fleet, max_concurrent_requests=1) as fleet.port,
        client_of(fleet, max_retries=2) as client,
    ):
        first = asyncio.ensure_future(create(client))
        await asyncio.wait_for(fleet.is_asked.wait(), 20)
        with pytest.raises(openai.RateLimitError) as full:
            await create(client.with_options(max_retries=0))
        second = asyncio.ensure_future(create(client))
        say(fleet, "a")
        await first
        say(fleet, "b")
        answer = await second

    assert full.value.response.headers["retry-after"] == "1"
    assert answer.choices[0].message.content == "b"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_client_that_leaves_cancels_its_request(is_streamed, fleet):
    fleet.put(ADMITTED, Tokens(token_ids=TOKENIZER.encode_text("a").tolist()))
    async with client_of(fleet) as client:
        asked = asyncio.ensure_future(create(client, stream=is_streamed))
        await asyncio.wait_for(fleet.is_asked.wait(), 20)
        if is_streamed:
            stream = await asked
            assert (await anext(stream)).choices[0].delta.role == "assistant"
            assert fleet.num_open == 1
            await stream.close()
        else:
            asked.cancel()
        await asyncio.wait_for(fleet.is_left.wait(), 20)

    assert fleet.num_open == 0
