"""Answers of the Responses API over HTTP: their forms, streams and errors."""

import asyncio
import json
from itertools import chain

import pytest
from openai.types.responses import Response

from protos.wire.status import ErrorStatus, Reason
from router.errors import EngineError, QueueFull
from router.types.engine_events import Admitted, Finished, FinishReason, TokenLogprobs, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.responses.asking import PATH, events_of, http_client
from tests.router.http.served_fleet import prompt_of, say
from tests.router.http.serving import MAX_BODY_BYTES
from tests.router.pipelines import TOKENIZER

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAID = '<think>\nhm\n</think>\n\nI call.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n'
SAID += "</tool_call>"
TWO_CALLS = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n' * 2
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)


async def ask(fleet, **body):
    async with http_client(fleet) as client:
        answer = await client.post(PATH, json={"input": "go"} | body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        return events_of(answer.text)
    return answer.json()


def without_names(entries):
    return [
        {key: value for key, value in entry.items() if key not in ("id", "call_id")}
        for entry in entries
    ]


OUTPUT = [
    {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "encrypted_content": None,
        "status": "completed",
    },
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I call.", "annotations": [], "logprobs": []}],
        "status": "completed",
    },
    {
        "type": "function_call",
        "name": "f",
        "arguments": '{"x": "é"}',
        "status": "completed",
    },
]


async def test_answer_has_items_usage_and_the_settings_of_its_request(fleet):
    say(fleet, SAID)
    settings = {
        "instructions": "Be short.",
        "max_output_tokens": 100,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "reasoning": {"effort": "low", "summary": "auto"},
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": "auto",
        "tools": [TOOL | {"description": None}],
        "top_p": 0.25,
        "truncation": "auto",
        "user": "me",
        "safety_identifier": "x",
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
    }

    answer = await ask(fleet, model="small", store=True, service_tier="flex", **settings)

    Response.model_validate(answer, strict=True)
    assert without_names(answer["output"]) == OUTPUT
    assert answer["id"].startswith("resp_")
    assert answer["object"] == "response"
    assert (answer["status"], answer["error"], answer["incomplete_details"]) == (
        "completed",
        None,
        None,
    )
    assert {name: answer[name] for name in settings} == settings
    assert (answer["store"], answer["service_tier"], answer["model"]) == (False, "default", "small")
    num_prompt, num_new = len(fleet.requests[0].prompt_token_ids), len(TOKENIZER.encode_text(SAID))
    usage = answer["usage"]
    assert usage.pop("output_tokens_details")["reasoning_tokens"] in range(3, 8)
    assert usage == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": num_new + 1,
        "total_tokens": num_prompt + num_new + 1,
    }
    assert "Be short." in prompt_of(fleet)


async def test_output_can_be_sent_back_as_input(fleet):
    say(fleet, SAID)
    say(fleet, "<think>\n\n</think>\n\nFine.")
    async with http_client(fleet) as client:
        spoken = [{"role": "user", "content": "go"}]
        body = {"tools": [TOOL], "input": spoken}
        output = (await client.post(PATH, json=body)).json()["output"]
        result = {"call_id": output[-1]["call_id"], "type": "function_call_output", "output": "42"}
        body["input"] = [*spoken, *output, result]
        answer = await client.post(PATH, json=body)

    assert answer.json()["output"][-1]["content"][0]["text"] == "Fine."
    prompt = prompt_of(fleet)
    assert "<think>\nhm\n</think>\n\nI call.\n<tool_call>\n" in prompt
    assert '"arguments": {"x": "é"}}\n</tool_call>' in prompt
    assert "<tool_response>\n42\n</tool_response>" in prompt


async def test_answer_at_its_limit_is_incomplete(fleet):
    say(fleet, "<think>\nhm", is_cut=True)

    answer = await ask(fleet, max_output_tokens=5)

    assert (answer["status"], answer["completed_at"]) == ("incomplete", None)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in answer["output"]] == ["incomplete"]


async def test_answer_without_text_has_an_empty_message(fleet):
    say(fleet, "")

    [message] = (await ask(fleet))["output"]

    assert [part["text"] for part in message["content"]] == [""]


async def test_one_call_only_where_parallel_ones_are_not_wanted(fleet):
    say(fleet, TWO_CALLS)
    say(fleet, TWO_CALLS)

    both = await ask(fleet, tools=[TOOL])
    one = await ask(fleet, tools=[TOOL], parallel_tool_calls=False)

    assert [item["type"] for item in both["output"]] == ["function_call"] * 2
    assert [item["type"] for item in one["output"]] == ["function_call"]
    assert [json.loads(item["arguments"]) for item in one["output"]] == [{"x": 1}]


async def test_events_are_numbered_and_tell_the_same_as_the_whole_answer(fleet):
    say(fleet, SAID)
    say(fleet, SAID)
    whole = await ask(fleet, tools=[TOOL])

    events = await ask(fleet, tools=[TOOL], stream=True)

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    types = [event["type"].removeprefix("response.") for event in events]
    deltas = ("reasoning_text.delta", "output_text.delta", "function_call_arguments.delta")
    assert min(map(types.count, deltas)) > 1, "as they come"
    assert [kind for kind in types if kind not in deltas] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    created, last = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert without_names(last["output"]) == OUTPUT
    same = [name for name in whole if name not in ("id", "output", "created_at", "completed_at")]
    assert {name: last[name] for name in same} == {name: whole[name] for name in same}
    assert created["id"] == last["id"]
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == last[
        "output"
    ]
    begun = [event["item"] for event in events if event["type"].endswith("item.added")]
    assert {item["status"] for item in begun} == {"in_progress"}
    assert [item.get("content", item.get("arguments")) for item in begun] == [[], [], ""]


async def test_deltas_of_a_stream_add_up(fleet):
    say(fleet, SAID)

    events = await ask(fleet, tools=[TOOL], stream=True)

    texts = {}
    for event in events:
        kind = event["type"]
        if kind.endswith(".delta"):
            key = (event["output_index"], event["item_id"])
            texts[key] = texts.get(key, "") + event["delta"]
    assert list(texts.values()) == ["hm", "I call.", '{"x": "é"}']
    output = events[-1]["response"]["output"]
    assert list(texts) == [(index, item["id"]) for index, item in enumerate(output)]


async def test_several_items_of_one_delta_are_told_one_after_the_other(fleet):
    text = f"<think>\nhm\n</think>\n\nA{TWO_CALLS}B"
    fleet.answer([*TOKENIZER.encode_text(text), 1], stop_token_id=1)

    events = await ask(fleet, tools=[TOOL], stream=True)

    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items][:2] == ["reasoning", "message"]
    assert [item["type"] for item in items].count("function_call") == 2
    open_items = []
    for event in events:
        if event["type"] == "response.output_item.added":
            open_items.append(event["output_index"])
            assert len(open_items) == 1
        elif event["type"] == "response.output_item.done":
            assert open_items.pop() == event["output_index"]
            assert event["item"] == items[event["output_index"]]
    assert not open_items


async def test_stream_at_its_limit_ends_as_incomplete(fleet):
    say(fleet, "<think>\n\n</think>\n\nYes", is_cut=True)

    *_, item, last = await ask(fleet, stream=True)

    assert last["type"] == "response.incomplete"
    assert item["item"]["status"] == last["response"]["output"][0]["status"] == "incomplete"


FAILURE = EngineError(
    ErrorStatus(code=14, message="the engine has gone", reason=Reason.ENGINE_FAILED, metadata={})
)


async def test_stream_that_fails_says_so_in_events(fleet):
    text = TOKENIZER.encode_text("<think>\n\n</think>\n\nYes").tolist()
    fleet.put(ADMITTED, *(Tokens(token_ids=[token_id]) for token_id in text), FAILURE)

    *_, error, last = await ask(fleet, stream=True)

    assert (error["type"], error["code"]) == ("error", "engine_failed")
    assert error["message"] == "the engine has gone"
    assert last["type"] == "response.failed"
    assert last["sequence_number"] == error["sequence_number"] + 1
    failed = last["response"]
    Response.model_validate(failed, strict=True)
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": "the engine has gone"}
    [message] = failed["output"]
    assert (message["status"], message["content"][0]["text"]) == ("incomplete", "Yes")


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_fails_before_it_begins_has_the_status_of_its_error(fleet, stream):
    fleet.error = QueueFull("too many requests", retry_after=1.5)
    async with http_client(fleet) as client:
        answer = await client.post(PATH, json={"input": "go", "stream": stream})

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"]["type"] == "rate_limit_error"


def scored(text, num_top):
    """Returns the tokens of a text, each with a logprob that tells it apart."""
    return [
        Tokens(
            token_ids=[token_id],
            logprobs=TokenLogprobs(
                logprobs=[-float(index)],
                top_token_ids=[token_id, 5][:num_top],
                top_logprobs=[-float(index), -50.0][:num_top],
            ),
        )
        for index, token_id in enumerate(TOKENIZER.encode_text(text).tolist())
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_those_of_the_text(fleet, stream):
    before, text, after = "<think>\nhm\n</think>\n\n", "hé <x", TWO_CALLS
    tokens = scored(before + text + "\n" + after, 2)
    finish = Finished(reason=FinishReason.STOP, stop_token_id=1)
    fleet.put(ADMITTED, *tokens, Tokens(token_ids=[1], logprobs=tokens[0].logprobs), finish)

    answer = await ask(
        fleet,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        stream=stream,
        tools=[TOOL],
    )

    response = answer[-1]["response"] if stream else answer
    part = response["output"][1]["content"][0]
    assert part["text"] == text
    first = part["logprobs"][0]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]) == text.encode()
    assert first["logprob"] == -float(len(TOKENIZER.encode_text(before)))
    assert first["top_logprobs"][0] == {name: first[name] for name in ("token", "bytes", "logprob")}
    assert [top["logprob"] for top in first["top_logprobs"]] == [first["logprob"], -50.0]
    assert response["top_logprobs"] == 2
    if stream:
        told = [
            event["logprobs"] for event in answer if event["type"].endswith("output_text.delta")
        ]
        assert list(chain(*told)) == part["logprobs"]
        [done] = [event for event in answer if event["type"] == "response.output_text.done"]
        assert done["logprobs"] == part["logprobs"]


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (b"", 400, None, "the body is empty; it must be a JSON object"),
        (b"[]", 400, None, "the body is no JSON object that can be read"),
        (b'{"input": "\xff"}', 400, None, "invalid unicode"),
        (b'{"input": "\\ud800"}', 400, None, "the body is no JSON object that can be read"),
        (b"[" * 50_000, 400, None, "recursion limit"),
        (b'{"input": "a", "seed": %b}' % HUGE.encode(), 400, None, "number out of range"),
        (b'{"input": "a", "temperature": NaN}', 400, "temperature", "temperature is NaN"),
        (b'{"input": "a", "temperature": 1e999}', 400, "temperature", "temperature is inf"),
        (b'{"input": "a", "tool": 1}', 400, "tool", "tool is not a field of this request"),
        (b'{"input": "a", "model": "no"}', 404, None, '"no" is not served'),
        (b'{"input": "a", "tool_choice": "required"}', 400, "tool_choice", "as tools is empty"),
        (
            b'{"input": "a", "max_output_tokens": 5000}',
            400,
            None,
            "max_output_tokens of 5000 are",
        ),
        (b'{"input": "a", "top_logprobs": 20}', 400, "top_logprobs", "top_logprobs is 20, outside"),
        (b'{"input": "%b"}' % (b"a" * 11_000), 400, "input", "input has 11000 bytes, over max_pr"),
        (
            b'{"input": [%b]}' % b",".join([b'{"role": "user", "content": ""}'] * 4097),
            413,
            "body",
            "the body has",
        ),
        (
            b'{"input": "a", "tools": [{"type": "function", "name": "f"}], "tool_choice": '
            b'{"type": "function", "name": "g"}}',
            400,
            "tool_choice.name",
            "tool_choice.name is 'g'",
        ),
        (
            b'{"input": "a", "tools": [{"type": "function", "name": "f"}], "tool_choice": '
            b'"required", "text": {"format": {"type": "json_object"}}}',
            400,
            "text.format",
            "text.format is set, but tool_choice is required",
        ),
        (b"x" * (MAX_BODY_BYTES + 1), 413, "body", "outside 0 to"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(fleet, body, status, param, message):
    async with http_client(fleet) as client:
        answer = await client.post(PATH, content=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert message in error["message"]
    assert not fleet.requests


async def test_client_that_leaves_cancels_its_request(fleet):
    fleet.put(ADMITTED, Tokens(token_ids=[80]))
    async with http_client(fleet) as client:
        async with client.stream("POST", PATH, json={"input": "go", "stream": True}) as answer:
            await anext(answer.aiter_bytes())
            assert fleet.num_open == 1
        async with asyncio.timeout(10):
            await fleet.is_left.wait()
    assert fleet.num_open == 0
