"""Anthropic's own client against the router."""

import asyncio

import anthropic
import pydantic
import pytest

from protos.wire.status import ErrorStatus
from router.errors import EngineError, QueueFull
from router.types.engine_events import Admitted, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.anthropic.requests import BASE, CALLS, THINKS, TOOL, USER

pytestmark = pytest.mark.asyncio(loop_scope="module")


class City(pydantic.BaseModel):
    """An answer in a form that the client asks for."""

    name: str


def overloaded():
    status = ErrorStatus(code=14, message="engine lost", reason="ENGINE_FAILED", domain="d")
    return EngineError(status)


async def test_message_is_read(door):
    door.will_say(THINKS + "Hello.")
    async with door.client() as client:
        message = await client.messages.create(
            **BASE,
            system="Be nice.",
            thinking={"type": "enabled", "budget_tokens": 1024},
            metadata={"user_id": "me"},
            service_tier="auto",
            stop_sequences=["never"],
            extra_headers={"anthropic-beta": "some-beta"},
        )

    thinking, text = message.content
    assert (thinking.thinking, text.text) == ("hm", "Hello.")
    assert (message.stop_reason, message.model) == ("end_turn", "small")
    assert message.usage.cache_read_input_tokens == 16


@pytest.mark.parametrize("is_beta", [False, True])
async def test_stream_gathers_the_message(door, is_beta):
    door.will_say(THINKS + "I call. " + CALLS)
    async with door.client() as client:
        messages = client.beta.messages if is_beta else client.messages
        async with messages.stream(**BASE, tools=[TOOL]) as stream:
            texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()

    thinking, text, call = message.content
    assert (thinking.thinking, text.text, "".join(texts)) == ("hm", "I call.", "I call.")
    assert (call.name, call.input) == ("weather", {"city": "Köln"})
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens > 10
    assert message.usage.input_tokens == len(door.request.prompt_token_ids) - 16


async def test_result_of_a_tool_is_sent_with_the_message_that_called_it(door):
    door.will_say(THINKS + "I call. " + CALLS)
    door.will_say("It rains.")
    async with door.client() as client:
        first = await client.messages.create(**BASE, tools=[TOOL])
        call = first.content[-1]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
        second = await client.messages.create(
            **{
                **BASE,
                "messages": [
                    USER,
                    {"role": "assistant", "content": first.content},
                    {"role": "user", "content": [result]},
                ],
            },
            tools=[TOOL],
        )

    assert second.content[0].text == "It rains."
    assert "<think>\nhm\n</think>\n\nI call.\n<tool_call>" in door.prompt
    assert "<tool_response>\nrain\n</tool_response>" in door.prompt


async def test_schema_of_the_answer_is_that_of_a_class(door):
    door.will_say('{"name": "Bonn"}')
    async with door.client() as client:
        message = await client.messages.parse(**BASE, output_format=City)

    assert message.parsed_output == City(name="Bonn")
    assert '"name"' in door.request.sampling_params.grammar.text


async def test_tokens_are_counted(door):
    async with door.client() as client:
        short = await client.messages.count_tokens(model="small", messages=[USER])
        long = await client.messages.count_tokens(model="small", messages=[USER], tools=[TOOL])

    assert 0 < short.input_tokens < long.input_tokens


@pytest.mark.parametrize(
    ("changes", "error", "kind"),
    [
        ({"max_tokens": -1}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "large"}, anthropic.NotFoundError, "not_found_error"),
        ({"system": "a" * 200_000}, anthropic.RequestTooLargeError, "request_too_large"),
    ],
)
async def test_errors_of_a_request_are_the_types_of_the_client(door, changes, error, kind):
    async with door.client() as client:
        with pytest.raises(error) as caught:
            await client.messages.create(**{**BASE, **changes})

    assert caught.value.body["error"]["type"] == kind


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (overloaded(), anthropic.ServiceUnavailableError),
        (QueueFull("full", retry_after=1.0), anthropic.RateLimitError),
        (RuntimeError("bug"), anthropic.InternalServerError),
    ],
)
async def test_errors_of_the_service_are_the_types_of_the_client(door, failure, error):
    door.fleet.put(failure)
    async with door.client() as client:
        with pytest.raises(error):
            await client.messages.create(**BASE)


async def test_client_tries_again_when_it_is_told_to_wait(door):
    door.fleet.put(QueueFull("full", retry_after=0.01))
    door.will_say("ok")
    async with door.client(max_retries=1) as client:
        message = await client.messages.create(**BASE)

    assert message.content[0].text == "ok"
    assert len(door.fleet.requests) == 2


async def test_error_in_the_middle_of_a_stream_is_raised(door):
    admitted = Admitted(engine=ENGINE, num_cached_tokens=0, seed=1)
    door.fleet.put(admitted, Tokens(token_ids=[80]), overloaded())
    async with door.client() as client:
        with pytest.raises(anthropic.APIStatusError, match="engine lost") as caught:
            async with client.messages.stream(**BASE) as stream:
                await stream.get_final_message()

    assert caught.value.body["error"]["type"] == "overloaded_error"


async def test_client_that_leaves_cancels(door):
    admitted = Admitted(engine=ENGINE, num_cached_tokens=0, seed=1)
    door.fleet.put(admitted, Tokens(token_ids=[80]))
    async with door.client() as client, client.messages.stream(**BASE) as stream:
        await anext(aiter(stream))
        assert door.fleet.num_open == 1

    await door.wait_idle()


async def test_client_that_leaves_before_a_whole_answer_cancels(door):
    door.fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1))
    door.fleet.is_asked.clear()
    asking = asyncio.create_task(door.send(json=BASE))
    await door.fleet.is_asked.wait()
    asking.cancel()

    await door.wait_idle()
