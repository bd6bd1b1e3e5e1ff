"""LangChain's ChatOpenAI against the HTTP port."""

import pydantic
import pytest
import pytest_asyncio

from tests.router.http.scripted_fleet import scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")
THOUGHT = "<think>\nhm\n</think>\n\n"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
SKY = '{"city": "Köln", "sky": "grey"}'
SCRIPT = {
    "greet": [f"{THOUGHT}Grüße 😀"],
    "weather": [f"{THOUGHT}I call.\n{CALL}"],
    "<tool_response>\nrain": ["It rains."],
    "an object": [f"{THOUGHT}{SKY}"],
    "a call": [f'<tool_call>\n{{"name": "Sky", "arguments": {SKY}}}\n</tool_call>'],
}


class Sky(pydantic.BaseModel):
    """How the sky is over a city."""

    city: str
    sky: str


def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"rain in {city}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet():
    async with scripted(SCRIPT) as fleet:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(fleet):
    """The model as a user of LangChain has it."""
    # Takes seconds, also where none of these tests runs.
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="small",
        base_url=f"http://127.0.0.1:{fleet.port}/v1",
        api_key="any",
        timeout=20,
        max_retries=0,
        top_p=1,
        stream_usage=True,
    )
    yield model
    await model.root_async_client.close()


async def test_invoke_returns_the_answer_and_its_usage(model):
    answer = await model.ainvoke("greet me", stop=["never"])
    assert answer.content == "Grüße 😀"
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["cache_read"] == 16


async def test_stream_adds_up_to_the_answer_and_its_usage(model):
    chunks = [chunk async for chunk in model.astream("greet me")]
    assert len(chunks) > 2
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == "Grüße 😀"
    assert whole.usage_metadata["output_tokens"] > 0


async def test_bound_tools_are_called_and_their_results_sent_back(model):
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = model.bind_tools([weather])
    asked = HumanMessage("weather?")
    chunks = [chunk async for chunk in bound.astream([asked])]
    called = sum(chunks[1:], chunks[0])
    [call] = called.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Köln"})
    result = ToolMessage("rain", tool_call_id=call["id"])
    told = await bound.ainvoke([asked, called, result])
    assert told.content == "It rains."


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
async def test_structured_output_is_held_to_its_form(model, fleet, method):
    answer = await model.with_structured_output(Sky, method=method).ainvoke("an object")
    assert answer == Sky(city="Köln", sky="grey")
    grammar = fleet.requests[-1].sampling_params.grammar
    assert grammar is not None
    assert (grammar.form == "json_schema") == (method == "json_schema")


async def test_structured_output_by_a_call_is_that_call(model, fleet):
    answer = await model.with_structured_output(Sky, method="function_calling").ainvoke("a call")
    assert answer == Sky(city="Köln", sky="grey")
    assert fleet.requests[-1].sampling_params.grammar is not None
