"""Requests of the Responses API: what the model gets, and what is refused."""

import json
from pathlib import Path
from typing import get_type_hints

import pytest
from openai.types import responses as api
from openai.types.responses import (
    easy_input_message_param,
    response_create_params,
    response_input_item_param,
)
from openai.types.shared_params import Reasoning as ReasoningParam

from protos.wire.limits import MAX_CHAT_JSON_BYTES
from protos.wire.sampling_params import Grammar
from router.errors import InvalidRequest
from router.http.body import parse_body
from router.http.responses import items, request, tools
from router.types.prompts import ChatMessage, Tool, ToolCall, ToolChoice


def parse(body) -> request.ResponsesRequest:
    return parse_body(request.ResponsesRequest, json.dumps({"input": "hi"} | body).encode())


def chat_of(**body):
    return parse(body).chat()


def convert(body):
    parsed = parse(body)
    return parsed.chat(), parsed.sampling()


def function(name="f", **more):
    return {"type": "function", "name": name, **more}


ROOT = Path(__file__).parents[4]
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "2"}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (request.ResponsesRequest, response_create_params.ResponseCreateParamsStreaming),
        (request.ResponsesRequest, response_create_params.ResponseCreateParamsNonStreaming),
        (request.TextFields, api.ResponseTextConfigParam),
        (request.SchemaText, api.ResponseFormatTextJSONSchemaConfigParam),
        (request.ReasoningFields, ReasoningParam),
        (request.StreamOptions, response_create_params.StreamOptions),
        (request.PromptCacheOptions, response_create_params.PromptCacheOptions),
        (tools.FunctionTool, api.FunctionToolParam),
        (tools.ChosenFunction, api.ToolChoiceFunctionParam),
        (tools.AllowedTools, api.ToolChoiceAllowedParam),
        (items.Message, easy_input_message_param.EasyInputMessageParam),
        (items.Message, response_input_item_param.Message),
        (items.Message, api.ResponseOutputMessageParam),
        (items.InputText, api.ResponseInputTextParam),
        (items.OutputText, api.ResponseOutputTextParam),
        (items.OutputRefusal, api.ResponseOutputRefusalParam),
        (items.FunctionCall, api.ResponseFunctionToolCallParam),
        (items.FunctionCallOutput, response_input_item_param.FunctionCallOutput),
        (items.Reasoning, api.ResponseReasoningItemParam),
    ],
)
def test_fields_of_the_official_client_are_all_known(ours, theirs):
    known = {field.alias or name for name, field in ours.model_fields.items()}
    assert set(get_type_hints(theirs)) <= known


def test_text_is_what_the_user_says():
    assert chat_of().messages == (ChatMessage(role="user", content="hi"),)


def test_instructions_come_first_in_one_message_with_what_the_system_says_then():
    spoken = [
        {"role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "system", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "developer", "content": "e"},
    ]
    assert chat_of(instructions="a", input=spoken).messages == (
        ChatMessage(role="system", content="a\n\nb\n\nc"),
        ChatMessage(role="user", content="d"),
        ChatMessage(role="system", content="e"),
    )


def test_what_an_assistant_thinks_says_and_calls_is_one_message():
    said = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": None,
        "content": [
            {"type": "output_text", "text": "I call.", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "Or not."},
        ],
    }
    chat = chat_of(
        input=[
            {"role": "user", "content": "go"},
            THOUGHT,
            said,
            CALL,
            CALL | {"call_id": "c2", "id": "fc_2", "status": "completed"},
            RESULT,
            RESULT | {"call_id": "c2", "output": [{"type": "input_text", "text": "3"}]},
            THOUGHT,
            {"role": "assistant", "content": "Done."},
            {"role": "assistant", "content": "Really."},
        ]
    )
    calls = tuple(ToolCall(call_id=one, name="f", arguments={"x": 1}) for one in ("c1", "c2"))
    assert chat.messages == (
        ChatMessage(role="user", content="go"),
        ChatMessage(
            role="assistant",
            content="",
            parts=("I call.", "Or not."),
            tool_calls=calls,
            reasoning="hm",
        ),
        ChatMessage(role="tool", content="2", tool_call_id="c1"),
        ChatMessage(role="tool", content="3", tool_call_id="c2"),
        ChatMessage(role="assistant", content="Done.", reasoning="hm"),
        ChatMessage(role="assistant", content="Really."),
    )
    assert chat.num_json_bytes == 2 * len(CALL["arguments"])


def test_thought_that_nothing_follows_is_left_out():
    asked = {"role": "user", "content": "go"}
    expected = (ChatMessage(role="user", content="go"),) * 2
    assert chat_of(input=[asked, THOUGHT, asked]).messages == expected


def test_summary_stands_for_a_thought_without_text():
    summary = [{"type": "summary_text", "text": "short"}]
    thought = {"type": "reasoning", "id": "1", "summary": summary, "encrypted_content": "x"}
    [message] = chat_of(input=[thought, {"role": "assistant", "content": "a"}]).messages
    assert message.reasoning == "short"


def test_functions_are_described_to_the_model():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    chat = chat_of(
        tools=[
            function(
                description="Does it.",
                parameters=schema,
                strict=True,
                allowed_callers=["direct"],
                defer_loading=False,
            ),
            function("g", parameters=None, strict=None),
        ]
    )
    assert chat.tools == (
        Tool(name="f", description="Does it.", parameters=schema),
        Tool(name="g"),
    )


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        (None, (ToolChoice.AUTO, ""), "fg"),
        ("none", (ToolChoice.NONE, ""), "fg"),
        ("required", (ToolChoice.REQUIRED, ""), "fg"),
        (function("g"), (ToolChoice.AUTO, "g"), "fg"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [function("g")]},
            (ToolChoice.REQUIRED, ""),
            "g",
        ),
    ],
)
def test_tool_choice_says_which_functions_are_called(choice, expected, names):
    chat = chat_of(tools=[function("f"), function("g")], tool_choice=choice)
    assert (chat.tool_choice, chat.function_name) == expected
    assert [tool.name for tool in chat.tools] == list(names)


@pytest.mark.parametrize(
    ("effort", "variables"),
    [
        (None, {}),
        ("none", {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_effort_reaches_the_chat_template(effort, variables):
    chat = chat_of(reasoning={"effort": effort, "summary": "auto"}, chat_template_kwargs={"day": 1})
    assert chat.template_kwargs == variables | {"day": 1}


@pytest.mark.parametrize(
    ("format_", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar(form="json_object")),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            Grammar(form="json_schema", text='{"type": "object"}'),
        ),
    ],
)
def test_format_of_the_text_is_a_grammar(format_, grammar):
    params = parse({"text": {"format": format_, "verbosity": "low"}}).sampling()
    assert params.grammar == grammar


def test_sampling_fields_reach_the_parameters():
    params = parse(
        {"max_output_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 4}
    ).sampling()
    assert (params.max_tokens, params.temperature, params.top_p) == (5, 0.5, 0.25)
    assert (params.top_k, params.seed, params.logprobs) == (3, 4, None)


@pytest.mark.parametrize(
    ("body", "num"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
        ({"top_logprobs": 3}, 3),
        ({"top_logprobs": 0, "include": ["reasoning.encrypted_content"]}, None),
    ],
)
def test_logprobs_are_asked_for(body, num):
    assert parse(body).sampling().logprobs == num


DEEP = json.loads("[" * 80 + "]" * 80)
NOT_STORED = "nothing is stored here"


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", NOT_STORED),
        ({"conversation": "conv_1"}, "conversation", NOT_STORED),
        ({"conversation": {"id": "conv_1"}}, "conversation", NOT_STORED),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", NOT_STORED),
        ({"background": True}, "background", NOT_STORED),
        ({"background_options": {}}, "background_options", "no request runs in the background"),
        ({"context_management": []}, "context_management", "nothing of a conversation is left"),
        ({"moderation": {"model": "m"}}, "moderation", "there is no moderation"),
        ({"access_programs": {}}, "access_programs", "there are no access programs"),
        ({"image": {}}, "image", "the models here read text only"),
        ({"n": 2}, "n", "n is 2: this API has one answer"),
        ({"response_format": {"type": "text"}}, "response_format", "it is text.format"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "has no place for them"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfus", "not"),
        ({"stream_options": {"include_usage": False}}, "stream_options.include_usage", "always"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "mode is pro: there is one mode"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context", "chat template decides"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "effort is huge: input should"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm", "always"),
        ({"max_tokens": 5}, "max_tokens", "max_tokens is not a field of this request"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0: input should be"),
        ({"max_output_tokens": 10**30}, "max_output_tokens", "input should be less than 2147483"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"temperature": "warm"}, "temperature", "temperature is warm: input should be a valid"),
        ({"stream": "yes"}, "stream", "stream is yes: input should be a valid boolean"),
        ({"metadata": {"a": 1}}, "metadata.a", "metadata.a is 1: input should be a valid string"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "at most 512 characters"),
        ({"include": ["all"]}, "include[0]", "include[0] is all: input should be"),
        ({"input": 5}, "input", "input is 5: input should be a valid string or array"),
        ({"input": []}, "input", "input has nothing that a model could answer to"),
        ({"input": [5]}, "input[0]", "input[0] is 5: input should be an object"),
        ({"input": [{"role": "user"}]}, "input[0].content", "input[0].content is missing"),
        ({"input": [{"role": "tool", "content": ""}]}, "input[0].role", "role is tool"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "input[0].content[0]", "the models here read text only"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]},
         "input[0].content[0].text", "content[0].text is 5"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "nothing is stored;"),
        ({"input": [{"type": "web_search_call", "id": "1"}]}, "input[0]", "tools and services of"),
        ({"input": [CALL | {"arguments": "{"}]}, "input[0].arguments", "cannot be read"),
        ({"input": [CALL | {"arguments": "[1]"}]}, "input[0].arguments", "is no object"),
        ({"input": [CALL | {"async": True}]}, "input[0].async", "not called in the background"),
        ({"input": [CALL | {"name": "a b"}]}, "input[0].name", "name is a b: string should match"),
        ({"input": [CALL | {"namespace": "n"}]}, "input[0].namespace", "no namespaces here"),
        ({"input": [RESULT | {"call_id": "c" * 257}]}, "input[0].call_id", "at most 256 char"),
        ({"input": [{"type": "reasoning", "encrypted_content": "gAAA", "summary": []}]},
         "input[0].encrypted_content", "encrypted_content is gAAA, which only the server"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]",
         "it has the type web_search; supported are function; the"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "missing"),
        ({"tools": [function(parameters={"a": DEEP})]}, "tools[0].parameters", "81 levels"),
        ({"tools": [function(parameters={"a": float("nan")})]}, "tools[0].parameters", "NaN"),
        ({"tools": [function(output_schema={"a": float("inf")})]}, "tools[0].output", "Infinity"),
        ({"tools": [function(defer_loading=True)]}, "tools[0].defer_loading", "no search of"),
        ({"tool_choice": "always"}, "tool_choice", "tool_choice is always: input should be 'none'"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice",
         "it has the type mcp; supported are function, allowed_tools; "),
        ({"tools": [function()], "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                                 "tools": [function("g")]}},
         "tool_choice.tools[0].name", "is g; it must be the name of one of tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format",
         "it has the type xml; supported are text, json_object, json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "miss"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": DEEP}}}},
         "text.format.schema", "81 levels"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
         "structured_outputs", "is given beside text.format"),
        ({"chat_template_kwargs": {"a": DEEP}}, "chat_template_kwargs", "has 81 levels"),
        ({"input": [CALL | {"arguments": "x" * (MAX_CHAT_JSON_BYTES + 1)}]},
         "input[0].arguments", "bytes of J"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(body, field, message):
    with pytest.raises(InvalidRequest) as caught:
        convert(body)
    assert caught.value.metadata["field"].startswith(field)
    assert message in str(caught.value)


FULL = {
    "model": "small",
    "instructions": "a",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        THOUGHT | {"summary": [{"type": "summary_text", "text": "a"}]},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
        },
        CALL,
        RESULT,
    ],
    "tools": [function(parameters={"type": "object"}, output_schema={"type": "object"})],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [function()]},
    "text": {
        "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
        "verbosity": "low",
    },
    "reasoning": {"effort": "low", "summary": "auto"},
    "metadata": {"a": "b"},
    "include": ["message.output_text.logprobs"],
    "chat_template_kwargs": {"a": [1]},
    "stream_options": {"include_obfuscation": False, "include_usage": True},
    "prompt_cache_options": {"mode": "implicit"},
    "logit_bias": {"5": 1.0},
    "max_output_tokens": 5,
}
VALUES = [None, True, -1, 2**70, 1.5, float("nan"), 1e300, "", "x" * 5000, "\0", "(a)"]
VALUES += [[], {}, [None], [[]], [{}], ["x"], {"type": None}, {"type": []}, {"(a)": 1}, DEEP]


def changed(value, new):
    """Yields a value with each of the values in it changed."""
    yield new
    if isinstance(value, dict):
        for key, inner in value.items():
            for one in changed(inner, new):
                yield value | {key: one}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for one in changed(inner, new):
                yield [*value[:index], one, *value[index + 1 :]]


def error_of(body) -> InvalidRequest | None:
    try:
        convert(body)
    except InvalidRequest as error:
        return error
    return None


def test_full_request_is_taken():
    convert(FULL)


@pytest.mark.parametrize("new", VALUES, ids=lambda value: str(value)[:20])
def test_wrong_value_anywhere_ends_in_an_error_that_names_its_field(new):
    num_errors = 0
    fields = dict.fromkeys(request.ResponsesRequest.model_fields, None) | FULL
    for field, value in fields.items():
        for one in changed(value, new):
            body = FULL | {field: one}
            error = error_of(body)
            if error is None:
                text = json.dumps(parse(body).settings())
                # These are refused when all parameters are checked.
                assert "NaN" not in text or field in ("temperature", "top_p")
                continue
            num_errors += 1
            assert str(error).isprintable()
            assert len(str(error)) < 2000
            named = error.metadata["field"].partition(".")[0].partition("[")[0]
            assert named in (field, "tools", "tool_choice", "text")
    assert num_errors > 20


def test_fields_of_the_official_client_are_described_unless_their_names_say_all():
    page = (ROOT / "docs/http/responses.md").read_text()
    fields = get_type_hints(response_create_params.ResponseCreateParamsStreaming)
    undescribed = {name for name in fields if f"`{name}" not in page}
    assert undescribed == {"model"}
