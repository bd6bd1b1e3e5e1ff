"""What Anthropic's API answers to requests that cannot be served."""

import json

import pytest

from protos.wire.status import ErrorStatus
from router.errors import EngineError, QueueFull
from router.types.engine_events import Admitted, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.anthropic.requests import BASE, TOOL, USER

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAN, HUGE = float("nan"), 10**4000
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}
UNSUPPORTED = (
    "billing_policy",
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "mcp_servers",
    "thread",
)


def content(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def tool(**changes):
    return {"tools": [{**TOOL, **changes}]}


def use(**changes):
    block = {"type": "tool_use", "id": "1", "name": "f", "input": {}, **changes}
    return {"messages": [USER, {"role": "assistant", "content": [block]}, USER]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_of": 2}, "best_of is not a field of this request"),
        ({"max_tokens": None}, "max_tokens is null"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": True}, "max_tokens is true"),
        ({"max_tokens": HUGE}, "max_tokens is 1000"),
        ({"system": "z " * 2000}, "prompt is too long: "),
        ({"model": ""}, "model is "),
        ({"temperature": "1"}, 'temperature is "1"'),
        ({"temperature": NAN}, "temperature is "),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": HUGE}, "temperature is "),
        ({"top_k": HUGE}, "top_k is 1000"),
        ({"top_p": 2}, "top_p is 2"),
        ({"stop_sequences": "a"}, "stop_sequences is a"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences[1] is "),
        ({"stop_sequences": ["é" * 600]}, "stop_sequences[0] has 1200 bytes, outside 1 to 1024"),
        ({"stop_sequences": ["a"] * 1025}, "stop_sequences is "),
        ({"messages": []}, "messages is "),
        ({"messages": {}}, "messages is "),
        ({"messages": ["go"]}, "messages[0] is go: input should be an object"),
        ({"messages": [{"role": "pirate"}]}, "messages[0] is "),
        ({"messages": [{"role": "pirate"}]}, "it has the role pirate"),
        ({"messages": [{"content": "a"}]}, "it has no role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is 5"),
        (content(IMAGE), "messages[0].content[0] is "),
        (content(IMAGE), "it has the type image; supported are text, tool_result"),
        (content({"type": "document"}), "it has the type document"),
        (content({"type": ["text"]}), "it has the type ['text']"),
        (content({"type": "text", "text": 5}), "messages[0].content[0].text is 5"),
        (
            content({"type": "text", "text": "a", "cache_control": {"type": "forever"}}),
            "messages[0].content[0].cache_control.type is forever",
        ),
        (
            content({"type": "text", "text": "a", "citations": [{"type": "page"}]}),
            "there are no documents to cite",
        ),
        (content({"type": "text", "text": "a", "size": 1}), "messages[0].content[0].size is not"),
        (use(name="a b"), "messages[1].content[0].name is a b"),
        (use(id="x" * 300), "messages[1].content[0].id is x"),
        (use(input=[]), "messages[1].content[0].input is "),
        (use(caller={"type": "code_execution_20260120"}), "messages[1].content[0].caller"),
        (use(toolset_name="browser"), "there are no toolsets"),
        ({"system": [IMAGE]}, "system[0] is "),
        ({"system": {"type": "text"}}, "system is "),
        (tool(type="web_search_20250305"), "it has the type web_search_20250305"),
        (tool(type="bash_20250124"), "supported are custom"),
        (tool(name=""), "tools[0].name is "),
        (tool(input_schema="{}"), "tools[0].input_schema is {}"),
        (tool(input_schema={"type": "array"}), "tools[0].input_schema.type is 'array'"),
        (tool(input_schema={"a": NAN}), "tools[0].input_schema is "),
        (tool(defer_loading=True), "tools[0].defer_loading is true"),
        (tool(allowed_callers=["code_execution_20260120"]), "tools[0].allowed_callers[0] is code"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name is 'weather'"),
        ({"tool_choice": "any"}, "tool_choice is any: input should be an object"),
        ({"tool_choice": {"type": "required"}}, "it has the type required"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is missing"),
        ({"thinking": {"type": "between_tools"}}, "it has the type between_tools"),
        ({"output_config": {"effort": "some"}}, "output_config.effort is some"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type is text"),
        ({"output_config": {"task_budget": {"total": 5}}}, "the only budget is max_tokens"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"a": NAN}}}},
            "output_config.format.schema is ",
        ),
        (
            {
                "output_format": {"type": "json_schema", "schema": {}},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_format asks for another answer than output_config.format",
        ),
        (
            {
                "output_format": {"type": "json_schema", "schema": {}},
                "tool_choice": {"type": "any"},
                "tools": [TOOL],
            },
            "tool_choice.type asks for another answer",
        ),
        *[({name: {"a": "b"}}, f"{name} is ") for name in UNSUPPORTED],
    ],
)
async def test_wrong_field_is_named(door, changes, message):
    body = json.dumps({**BASE, **changes})
    answer = await door.send(content=body)

    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert (error["type"], error["request_id"]) == ("error", answer.headers["request-id"])
    assert error["error"]["type"] == "invalid_request_error"
    assert message in error["error"]["message"]
    assert len(error["error"]["message"]) < 1000
    assert door.fleet.requests == []


@pytest.mark.parametrize("name", UNSUPPORTED)
async def test_field_that_asks_for_nothing_is_no_error(door, name):
    assert (await door.post(**{name: None})).status_code == 200
    assert (await door.post(**{name: []})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"max_tokens": 1' + b"0" * 10_000 + b"}",
        b'{"messages": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a": ' * 300 + b"1" + b"}" * 300,
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_body_that_is_no_object_of_json_is_told(door, path, body):
    answer = await door.send(path, content=body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    told = "is no JSON object" if body else "is empty; it must be a JSON object"
    assert f"the body {told}" in answer.json()["error"]["message"]


def failure(code, reason="ENGINE_FAILED", metadata=()):
    return EngineError(
        ErrorStatus(
            code=code,
            message="engine says no",
            reason=reason,
            domain="pagestream.engine.v1",
            metadata={"engine": ENGINE, "max_tokens": "5", **dict(metadata)},
        )
    )


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (failure(3), 400, "invalid_request_error"),
        (failure(3, "PROMPT_TOO_LONG"), 400, "invalid_request_error"),
        (failure(16), 401, "authentication_error"),
        (failure(7), 403, "permission_error"),
        (failure(8), 429, "rate_limit_error"),
        (failure(14), 503, "overloaded_error"),
        (failure(4), 504, "timeout_error"),
        (failure(13), 500, "api_error"),
        (failure(12), 501, "api_error"),
        (RuntimeError("bug"), 500, "api_error"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_errors_before_the_answer_have_their_own_status(door, error, status, kind, is_stream):
    door.fleet.put(error)
    answer = await door.send(json={**BASE, "stream": is_stream})

    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert "bug" not in answer.text


async def test_waiting_is_suggested_where_it_helps(door):
    door.fleet.put(QueueFull("all engines are busy", retry_after=1.5))
    answer = await door.send(json=BASE)

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


async def test_prompt_that_leaves_no_room_is_refused_in_words_that_clients_know(door):
    answer = await door.send(json={**BASE, "max_tokens": 1, "system": "a b " * 1200})

    assert answer.status_code == 400
    message = "prompt is too long: more than 2000 tokens > 1999 maximum"
    assert answer.json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_prompt_tokens": "9", "max_model_len": "5"}, "9 tokens > 4 maximum"),
        ({"num_prompt_tokens": "9", "max_model_len": "1e9"}, "engine says no"),
        ({}, "engine says no"),
    ],
)
async def test_engine_that_finds_the_prompt_too_long_is_understood(door, sizes, message):
    door.fleet.put(failure(3, "PROMPT_TOO_LONG", sizes))
    answer = await door.send(json=BASE)

    assert answer.json()["error"]["message"] == f"prompt is too long: {message}"


async def test_unknown_model_is_not_found(door):
    answer = await door.send(json={**BASE, "model": "large"})

    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert "large" in answer.json()["error"]["message"]


async def test_body_that_is_too_long_is_told(door):
    answer = await door.send(json={**BASE, "system": "a" * 200_000})

    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


async def test_wrong_method_is_told_in_the_form_of_the_api(door):
    answer = await door.send(method="GET")

    assert (answer.status_code, answer.json()["type"]) == (405, "error")


async def test_error_after_the_first_token_is_the_last_event(door):
    admitted = Admitted(engine=ENGINE, num_cached_tokens=0, seed=1)
    door.fleet.put(admitted, Tokens(token_ids=[80]), failure(14))
    answer = await door.send(json={**BASE, "stream": True})

    assert answer.status_code == 200
    *_, last = answer.text.removesuffix("\n\n").split("\n\n")
    name, data = last.split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert error["type"] == "error"
    assert error["error"] == {"type": "overloaded_error", "message": "engine says no"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 5}, "max_tokens is not a field of this request"),
        ({"messages": []}, "messages is "),
        ({"tools": [{}]}, "tools[0].name is missing"),
        ({"thinking": 5}, "thinking is 5"),
        ({"context_management": {"edits": [1]}}, "conversations are not edited"),
    ],
)
async def test_wrong_field_of_a_count_is_named(door, changes, message):
    request = {"model": "small", "messages": [USER], **changes}
    answer = await door.send("/v1/messages/count_tokens", json=request)

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
