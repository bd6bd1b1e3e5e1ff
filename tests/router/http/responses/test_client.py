"""OpenAI's own client against the Responses API."""

import json
from typing import Literal

import openai
import pydantic
import pytest

from protos.wire.status import ErrorStatus, Reason
from router.errors import EngineError, QueueFull
from router.types.engine_events import Admitted, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.responses.asking import openai_client
from tests.router.http.served_fleet import prompt_of, say
from tests.router.pipelines import TOKENIZER

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n'
CALLS += "</tool_call>"


class Weather(pydantic.BaseModel):
    """The weather in a city."""

    city: str


class Answer(pydantic.BaseModel):
    city: str
    sky: Literal["clear", "grey"]


async def test_client_gets_a_text(fleet):
    say(fleet, "<think>\nhm\n</think>\n\nGrüße 😀")
    async with openai_client(fleet) as client:
        response = await client.responses.create(model="small", input="go", store=False)

    assert response.output_text == "Grüße 😀"
    assert response.status == "completed"
    assert response.output[0].content[0].text == "hm"
    assert response.usage.input_tokens_details.cached_tokens == 16


async def test_client_holds_a_conversation_with_calls(fleet):
    say(fleet, CALLS)
    say(fleet, "<think>\n\n</think>\n\nIt is grey.")
    tools = [openai.pydantic_function_tool(Weather, name="weather")["function"]]
    tools = [{"type": "function", **tool} for tool in tools]
    spoken = [{"role": "user", "content": "How is it in Köln?"}]
    async with openai_client(fleet) as client:
        asked = await client.responses.create(model="small", input=spoken, tools=tools)
        call = asked.output[-1]
        spoken += asked.output
        spoken.append(
            {"type": "function_call_output", "call_id": call.call_id, "output": "grey sky"}
        )
        told = await client.responses.create(model="small", input=spoken, tools=tools)

    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        {"city": "Köln"},
    )
    assert told.output_text == "It is grey."
    assert "grey sky" in prompt_of(fleet)
    assert "<think>\nhm\n</think>" in prompt_of(fleet)


async def test_client_streams_a_text_and_its_reasoning(fleet):
    say(fleet, "<think>\nhm\n</think>\n\nGrüße 😀")
    texts = {"response.output_text.delta": "", "response.reasoning_text.delta": ""}
    async with (
        openai_client(fleet) as client,
        client.responses.stream(model="small", input="go") as stream,
    ):
        async for event in stream:
            if event.type in texts:
                texts[event.type] += event.delta
        response = await stream.get_final_response()

    assert list(texts.values()) == ["Grüße 😀", "hm"]
    assert response.output_text == "Grüße 😀"


async def test_client_streams_calls(fleet):
    say(fleet, CALLS)
    tool = openai.pydantic_function_tool(Weather, name="weather")["function"]
    tools = [{"type": "function", **tool}]
    async with (
        openai_client(fleet) as client,
        client.responses.stream(model="small", input="go", tools=tools) as stream,
    ):
        events = [event async for event in stream]
        response = await stream.get_final_response()

    pieces = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(pieces) > 1
    assert json.loads(pieces[-1].snapshot) == {"city": "Köln"}
    assert response.output[-1].parsed_arguments == {"city": "Köln"}


async def test_client_iterates_over_plain_events(fleet):
    say(fleet, "<think>\n\n</think>\n\nYes")
    async with openai_client(fleet) as client:
        stream = await client.responses.create(model="small", input="go", stream=True)
        events = [event async for event in stream]

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].response.output_text == "Yes"


async def test_client_gets_an_object_of_its_schema(fleet):
    say(fleet, '<think>\n\n</think>\n\n{"city": "Köln", "sky": "grey"}')
    async with openai_client(fleet) as client:
        response = await client.responses.parse(model="small", input="go", text_format=Answer)

    assert response.output_parsed == Answer(city="Köln", sky="grey")
    grammar = fleet.requests[0].sampling_params.grammar
    assert grammar.form == "json_schema"
    assert json.loads(grammar.text)["properties"]["sky"]["enum"] == ["clear", "grey"]


async def test_client_streams_an_object_of_its_schema(fleet):
    say(fleet, '<think>\n\n</think>\n\n{"city": "Köln", "sky": "grey"}')
    async with (
        openai_client(fleet) as client,
        client.responses.stream(model="small", input="go", text_format=Answer) as stream,
    ):
        response = await stream.get_final_response()

    assert response.output_parsed == Answer(city="Köln", sky="grey")


@pytest.mark.parametrize(
    ("changes", "kind", "param"),
    [
        ({"model": "large"}, openai.NotFoundError, None),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "previous_response_id"),
        ({"background": True}, openai.BadRequestError, "background"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"beams": 2}}, openai.BadRequestError, "beams"),
    ],
)
async def test_client_raises_the_error_of_its_kind(fleet, changes, kind, param):
    async with openai_client(fleet) as client:
        with pytest.raises(kind) as caught:
            await client.responses.create(**{"model": "small", "input": "go"} | changes)

    assert caught.value.param == param


async def test_client_tries_again_when_there_are_too_many_requests(fleet):
    say(fleet, "<think>\n\n</think>\n\nYes")
    fleet.error = QueueFull("too many requests", retry_after=0.001)
    async with openai_client(fleet) as client:
        send = client._client.send

        async def send_and_recover(*args, **options):
            answer = await send(*args, **options)
            fleet.error = None
            statuses.append(answer.status_code)
            return answer

        statuses = []
        client._client.send = send_and_recover
        trying = client.with_options(max_retries=1)
        response = await trying.responses.create(model="small", input="go")

    assert statuses == [429, 200]
    assert response.output_text == "Yes"


async def test_client_sees_an_answer_fail(fleet):
    status = ErrorStatus(code=14, message="gone", reason=Reason.ENGINE_FAILED, metadata={})
    text = TOKENIZER.encode_text("<think>\n\n</think>\n\nYes").tolist()
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=7))
    fleet.put(*(Tokens(token_ids=[token_id]) for token_id in text), EngineError(status))
    async with openai_client(fleet) as client:
        stream = await client.responses.create(model="small", input="go", stream=True)
        *_, error, last = [event async for event in stream]

    assert (error.type, error.message) == ("error", "gone")
    assert (last.type, last.response.error.message) == ("response.failed", "gone")
