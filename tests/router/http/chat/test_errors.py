"""Chat completions that are refused: with the status, and the name of the field that is wrong."""

import json

import pytest

from router.errors import InvalidRequest
from tests.fakes.fake_fleet import FakeFleet
from tests.router.http.chat.chats import PATH, TOOLS, USER
from tests.router.http.serving import MAX_BODY_BYTES, client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
NESTED = '{"a":' * 100 + "1" + "}" * 100
FUNCTION = {"name": "f", "arguments": "{}"}


def turn(**fields):
    return {"messages": [{**USER, **fields}]}


def part(**fields):
    return turn(content=[{"type": "text", "text": "a"}, fields])


def call(**fields):
    called = {"id": "1", "type": "function", "function": FUNCTION, **fields}
    return {"messages": [{"role": "assistant", "tool_calls": [called]}]}


def tool(**fields):
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}]}


def allowed(*names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}
    return {"tools": TOOLS, "tool_choice": choice}


WRONG = {
    # field, what the message has, the fields of the request
    "no messages": ("messages", "messages is missing", {"messages": ...}),
    "no list": ("messages", "messages is go: input should be a valid array", {"messages": "go"}),
    "many messages": ("messages", "list should have at most 4096 items", {
                      "messages": [{"role": "tool"}] * 4097}),
    "many tools": ("tools", "list should have at most 512 items", {"tools": TOOLS[1:] * 513}),
    "many parts": ("messages[0].content", "is a list of 513:", turn(content=[
                   {"type": "text", "text": ""}] * 513)),
    "many calls": ("messages[0].tool_calls", "is a list of 513:", turn(tool_calls=[{}] * 513)),
    "empty": ("messages", "messages has 0 entries, outside 1 to", {"messages": []}),
    "role": ("messages[0].role", "is pirate: input should be 'system',", turn(role="pirate")),
    "content": ("messages[0].content", "is 5: input should be a valid string", turn(content=5)),
    "no content": ("messages[0].content", "is null; it must be text", turn(content=None)),
    "field of a message": ("messages[0].colour", "is not a field of this", turn(colour="red")),
    "image": ("messages[0].content[1].type", "is image_url; it must be text; this server takes "
              "text only", part(type="image_url", image_url={"url": "x"})),
    "audio": ("messages[0].content[1].type", "is input_audio;", part(type="input_audio",
              input_audio={"data": "", "format": "wav"})),
    "file": ("messages[0].content[1].type", "is file;", part(type="file", file={})),
    "refusal part": ("messages[0].content[1].type", "is refusal;", part(type="refusal",
                     refusal="no")),
    "no text": ("messages[0].content[1].text", "is null; it must be", part(type="text")),
    "type of a part": ("messages[0].content[1].type", "is missing", part(text="a")),
    "text of a part": ("messages[0].content[1].text", "is 5: input should", part(type="text",
                       text=5)),
    "refusal": ("messages[0].refusal", "is no; it must be null; send", turn(refusal="no")),
    "calls of a user": ("messages[0].tool_calls", "unset in a message of the user",
                        turn(tool_calls=[{"function": FUNCTION}])),
    "arguments": ("messages[0].tool_calls[0].function.arguments", "is {, which cannot be read",
                  call(function={"name": "f", "arguments": "{"})),
    "surrogate": ("messages[0].tool_calls[0].function.arguments", "surrogates not allowed",
                  call(function={"name": "f", "arguments": '{"a": "\\ud800"}'})),
    "depth of arguments": ("messages[0].tool_calls[0].function.arguments", "has 100 levels",
                           call(function={"name": "f", "arguments": NESTED})),
    "NaN in arguments": ("messages[0].tool_calls[0].function.arguments", "NaN is no JSON",
                         call(function={"name": "f", "arguments": '{"a": NaN}'})),
    "name of a call": ("messages[0].tool_calls[0].function.name", "is 'f g'; it must be 1 to",
                       call(function={"name": "f g", "arguments": "{}"})),
    "custom call": ("messages[0].tool_calls[0].type", "is custom; it must be function",
                    call(type="custom", custom={}, function=None)),
    "call of nothing": ("messages[0].tool_calls[0].function", "is null;", call(function=None)),
    "two reasonings": ("messages[0].reasoning_content", "is b; it must be equal to reasoning",
                       turn(role="assistant", reasoning="a", reasoning_content="b")),
    "reasoning of a user": ("messages[0].reasoning", "unset in a message of the user",
                            turn(reasoning="a")),
    "tool": ("tools[0].type", "is custom; it must be function", {"tools": [{"type": "custom",
             "custom": {"name": "f"}}]}),
    "no function": ("tools[0].function", "is null; it must be", {"tools": [{"type": "function"}]}),
    "name of a tool": ("tools[0].function.name", "is ''; it must be 1 to 128", tool(name="")),
    "schema": ("tools[0].function.parameters", "is 5: input should be an object",
               tool(parameters=5)),
    "schema of a list": ("tools[0].function.parameters.type", "is 'array'; it must be",
                         tool(parameters={"type": "array"})),
    "depth of a schema": ("tools[0].function.parameters", "has 100 levels",
                          tool(parameters=json.loads(NESTED))),
    "choice": ("tool_choice", "is any: input should be 'none', 'auto'", {"tool_choice": "any"}),
    "choice of nothing": ("tool_choice", "must be unset, none or auto", {
                          "tool_choice": "required"}),
    "custom choice": ("tool_choice.type", "is custom; it must be", {"tool_choice": {
                      "type": "custom", "custom": {"name": "f"}}}),
    "empty choice": ("tool_choice.function", "is null; it must be set", {"tool_choice": {
                     "type": "function"}}),
    "unknown function": ("tool_choice.function.name", "is 'h'; it must be one of f, g", {
                         "tools": TOOLS, "tool_choice": {"type": "function",
                                                         "function": {"name": "h"}}}),
    "allowed nothing": ("tool_choice.allowed_tools.tools", "is []; it must be", allowed()),
    "allowed unknown": ("tool_choice.allowed_tools.tools[1].function.name", "is h; it must be",
                        allowed("f", "h")),
    "two grammars": ("response_format", "is set; it must be unset, as tool_choice asks for a call",
                     {"tools": TOOLS, "tool_choice": "required",
                      "response_format": {"type": "json_object"}}),
    "variables": ("chat_template_kwargs", "is 'messages'; it must be a name that is not taken",
                  {"chat_template_kwargs": {"messages": []}}),
    "many variables": ("chat_template_kwargs", "bytes of JSON, outside 0 to 65536",
                       {"chat_template_kwargs": {"a": "a" * 70_000}}),
    "continued": ("continue_final_message", "is 'true'; it must be false", {
                  "continue_final_message": True}),
    "both limits": ("max_completion_tokens", "is 5; it must be max_tokens, which is 6, or unset",
                    {"max_tokens": 6, "max_completion_tokens": 5}),
    "no tokens": ("max_completion_tokens", "is 0; it must be 1 and more", {
                  "max_completion_tokens": 0}),
    "huge": ("max_tokens", "input should be less than 2147483648", {"max_tokens": 10**30}),
    "fraction": ("max_tokens", "is 1.5: input should be a valid integer", {"max_tokens": 1.5}),
    "temperature": ("temperature", "is 200, outside 0 to 100", {"temperature": 200}),
    "hot": ("temperature", "is hot: input should be a valid number", {"temperature": "hot"}),
    "NaN": ("temperature", "temperature is NaN, outside", {"temperature": float("nan")}),
    "infinity": ("top_p", "top_p is inf, outside 0 to 1", {"top_p": float("inf")}),
    "NaN in a schema": ("response_format.json_schema.schema", "NaN is no JSON", {
                        "response_format": {"type": "json_schema", "json_schema": {
                            "name": "a", "schema": {"a": float("nan")}}}}),
    "number of candidates": ("top_logprobs", "is 101; it must be 0 to 100", {
                             "logprobs": True, "top_logprobs": 101}),
    "candidates alone": ("top_logprobs", "is 5; it must be unset unless", {"top_logprobs": 5}),
    "n": ("n", "n is 0, outside 1 to 128", {"n": 0}),
    "stop": ("stop[1]", "is 5: input should be a valid string", {"stop": ["a", 5]}),
    "empty stop": ("stop[0]", "stop[0] is empty, outside 1 to 1024 bytes", {"stop": [""]}),
    "stream options": ("stream_options", "unset unless stream is true", {
                       "stream_options": {"include_usage": True}}),
    "prompt of a stream": ("prompt_logprobs", "is 1; it must be unset if stream is true", {
                           "stream": True, "prompt_logprobs": 1}),
    "modalities": ("modalities", "is text, audio; it must be text only", {
                   "modalities": ["text", "audio"]}),
    "functions": ("functions", "is set; it must be unset; use tools", {"functions": []}),
    "function": ("function_call", "use tool_choice", {"function_call": "auto"}),
    "voice": ("audio", "is set; it must be unset", {"audio": {"voice": "a", "format": "wav"}}),
    "prediction": ("prediction", "is set; it must be", {"prediction": {"type": "content",
                   "content": "a"}}),
    "search": ("web_search_options", "does not search", {"web_search_options": {}}),
    "moderation": ("moderation", "does not moderate", {"moderation": {"model": "a"}}),
    "effort": ("reasoning_effort", "is huge: input should be 'none',", {
               "reasoning_effort": "huge"}),
    "unknown": ("best_of", "best_of is not a field of this request", {"best_of": 2}),
    "long grammar": ("structured_outputs.regex", "has 70000 bytes, outside 0 to 65536", {
                     "structured_outputs": {"regex": "a" * 70_000}}),
    "request ID": ("request_id", "must be printable", {"request_id": "a\x00"}),
    "salt": ("cache_salt", "cache_salt has 257 characters, outside 0 to 256", {
             "cache_salt": "a" * 257}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_request_is_told_which_field_is_wrong(name, fleet):
    field, text, fields = WRONG[name]
    request = {"messages": [USER], **fields}
    if request["messages"] is ...:
        del request["messages"]
    answer = await fleet.send(content=json.dumps(request))

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    assert text in error["message"]
    assert "chat." not in error["message"]
    assert len(error["message"]) < 500
    assert fleet.requests == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the body is empty; it must be a JSON object"),
        (b"{", "EOF while parsing"),
        (b"[]", "Input should be an object"),
        (b"null", "Input should be an object"),
        (b'{"messages": "\xff"}', "invalid unicode code point"),
        (b'{"messages": "\\ud800"}', "no JSON object that can be read"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "number out of range"),
        (b'{"metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "recursion limit"),
    ],
)
async def test_body_that_is_no_json_object_is_refused(content, text, fleet):
    answer = await fleet.send(content=content)

    assert answer.status_code == 400
    assert text in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] is None


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "large"}, 404, "model_not_found"),
        ({"messages": [{**USER, "content": "a" * 11_000}]}, 400, "context_length_exceeded"),
        ({"metadata": {"a": "a" * MAX_BODY_BYTES}}, 413, "bad_request"),
        ({"n": 9}, 400, "bad_sampling_params"),
    ],
)
async def test_errors_have_the_status_and_code_of_openai(fields, status, code, fleet):
    answer = await fleet.post(**fields)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


async def test_parameter_that_no_engine_has_is_named_as_the_client_has_it():
    async with client_of(FakeFleet()) as client:
        answer = await client.post(
            PATH, json={"messages": [USER], "logprobs": True, "top_logprobs": 5}
        )

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "top_logprobs"
    assert answer.json()["error"]["message"].startswith("top_logprobs is 5")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b'{"messages": [' + b"5," * 40_000 + b"5]}",
            "messages[0] is 5: input should be an object",
        ),
        (
            b'{"messages": [{"role": "user", "content": [' + b"{}," * 30_000 + b"{}]}]}",
            "messages[0].content[0].type is missing",
        ),
        (b'{"stop_token_ids": [' + b"null," * 10_000 + b"1]}", "stop_token_ids[0] is null: input"),
        (
            b'{"messages": [],' + b",".join(b'"a%d":1' % i for i in range(9000)) + b"}",
            "the body has 9000 faults, too many to name",
        ),
    ],
)
async def test_body_with_many_faults_is_told_the_first_ones(content, text, fleet):
    answer = await fleet.send(content=content)

    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert text in message
    assert message.count(" is ") < 4


async def test_grammar_that_an_engine_refuses_is_named_by_its_fields(fleet):
    text = "grammar.json_schema cannot be used: Invalid type: nonsense"
    fleet.put(InvalidRequest(f"sampling_params.{text}", {"field": "grammar.json_schema"}))

    schema = {"name": "a", "schema": {"type": "nonsense"}}
    answer = await fleet.post(response_format={"type": "json_schema", "json_schema": schema})

    names = "response_format or structured_outputs"
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == names
    assert answer.json()["error"]["message"] == f"{names} cannot be used: Invalid type: nonsense"


async def test_nothing_but_post_is_a_method():
    async with client_of(FakeFleet()) as client:
        answer = await client.get(PATH)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
