"""Conversations of Anthropic's form as prompts."""

import json

import pytest

from router.errors import InvalidRequest
from router.http.anthropic.prompt import to_chat_prompt
from router.http.anthropic.request import PromptFields
from router.http.body import parse_body
from router.types.prompts import ChatMessage, Tool, ToolCall
from tests.router.http.anthropic.requests import TOOL, USER


def prompt(*messages, **changes):
    body = {"model": "small", "messages": list(messages) or [USER], **changes}
    return to_chat_prompt(parse_body(PromptFields, json.dumps(body).encode()))


def text(content, **changes):
    return {"type": "text", "text": content, **changes}


def use(call_id="1", name="f", **arguments):
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def result(call_id="1", **changes):
    return {"type": "tool_result", "tool_use_id": call_id, **changes}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def test_every_block_has_its_place():
    cache = {"type": "ephemeral", "ttl": "1h"}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    said = text("I call.", citations=None)
    chat = prompt(
        user(text("a", cache_control=cache), text("b")),
        assistant(thought, hidden, said, use("1", "f", x=1), use("2", "g")),
        user(result("1", content="c", is_error=False), result("2"), text("d")),
        system=[text("Be nice.", cache_control=cache), text("Be short.")],
        tools=[TOOL],
        cache_control=cache,
    )

    assert chat.messages == (
        ChatMessage(role="system", content="", parts=("Be nice.", "Be short.")),
        ChatMessage(role="user", content="", parts=("a", "b")),
        ChatMessage(
            role="assistant",
            content="I call.",
            reasoning="hm",
            tool_calls=(
                ToolCall(call_id="1", name="f", arguments={"x": 1}),
                ToolCall(call_id="2", name="g", arguments={}),
            ),
        ),
        ChatMessage(role="tool", content="c", tool_call_id="1", name="f"),
        ChatMessage(role="tool", content="", tool_call_id="2", name="g"),
        ChatMessage(role="user", content="d"),
    )
    schema = TOOL["input_schema"]
    assert chat.tools == (
        Tool(name="weather", description="Tells the weather.", parameters=schema),
    )
    assert chat.num_json_bytes == len(json.dumps(schema)) + len('{"x": 1}') + len("{}")
    assert not chat.continue_final_message


def test_successive_messages_of_a_role_are_one():
    chat = prompt(USER, user(text("on")), {"role": "system", "content": "Stop."}, USER)

    assert [(message.role, message.content, message.parts) for message in chat.messages] == [
        ("user", "", ("go", "on")),
        ("system", "Stop.", ()),
        ("user", "go", ()),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"content": "no city"}, "Error: no city"),
        ({"content": [text("no"), text("city")]}, ("Error: no", "city")),
        ({"content": []}, "Error"),
        ({}, "Error"),
    ],
)
def test_failure_of_a_tool_is_told_to_the_model(content, expected):
    chat = prompt(USER, assistant(use()), user(result(is_error=True, **content)))

    last = chat.messages[-1]
    assert (last.parts or last.content) == expected


def test_examples_of_a_tool_are_in_its_schema():
    tool = {**TOOL, "input_examples": [{"city": "Bonn"}]}
    [found] = prompt(tools=[tool]).tools

    assert found.parameters == {**TOOL["input_schema"], "examples": [{"city": "Bonn"}]}


def test_last_message_of_the_assistant_is_continued():
    assert prompt(USER, assistant(text("It is"))).continue_final_message


@pytest.mark.parametrize(
    ("thinking", "variables"),
    [
        (None, {}),
        ({"type": "disabled"}, {"enable_thinking": False}),
        ({"type": "adaptive"}, {"enable_thinking": True}),
        ({"type": "enabled", "budget_tokens": 1024}, {"enable_thinking": True}),
    ],
)
def test_thinking_is_a_variable_of_the_template(thinking, variables):
    assert prompt(thinking=thinking).template_kwargs == variables


DEEP = {"a": 1}
for _ in range(70):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("field", "message", "changes"),
    [
        (
            "messages[0].content[0].tool_use_id",
            "is 9, which is the ID of no tool_use before it",
            {"messages": [user(result("9"))]},
        ),
        (
            "messages[1].content[0].input",
            "has 71 levels, outside 1 to 64",
            {"messages": [USER, assistant({**use(), "input": DEEP})]},
        ),
        (
            "tools[0].input_schema",
            "cannot be read: NaN is no JSON",
            {"tools": [{**TOOL, "input_schema": {"a": float("nan")}}]},
        ),
        (
            "tools[1].input_schema",
            "bytes of JSON, outside 0 to 1048576",
            {"tools": [{**TOOL, "input_schema": {"a": "é" * 300_000}}] * 2},
        ),
        ("tools[0].strict", "is true, which only", {"tools": [{**TOOL, "strict": True}]}),
        ("tool_choice.type", "is any, but there are no tools", {"tool_choice": {"type": "any"}}),
        (
            "tool_choice.name",
            "is f, which no tool has",
            {"tool_choice": {"type": "tool", "name": "f"}, "tools": [TOOL]},
        ),
        (
            "messages[1]",
            "is the assistant's, which is continued, but tool_choice.type is any",
            {
                "messages": [USER, assistant(text("a"))],
                "tools": [TOOL],
                "tool_choice": {"type": "any"},
            },
        ),
        (
            "messages[1]",
            "has a tool_use without a tool_result after it",
            {"messages": [USER, assistant(text("a"), use())]},
        ),
        ("messages[1]", "but it has no text", {"messages": [USER, assistant()]}),
        ("messages[1]", "but it has no text", {"messages": [USER, assistant(text(""))]}),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(field, message, changes):
    with pytest.raises(InvalidRequest) as caught:
        prompt(**changes)

    status = caught.value.status
    assert status.message.startswith(field)
    assert message in status.message
    assert status.metadata["field"] == field
