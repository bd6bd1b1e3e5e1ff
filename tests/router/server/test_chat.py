"""Chats of the contract, with what they hold as JSON, and answers with tool calls."""

import json

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.pagestream.router.v1 import router_pb2 as pb
from protos.wire.limits import MAX_CHAT_JSON_BYTES, MAX_JSON_DEPTH
from protos.wire.message_parser import MessageParser
from router.errors import InvalidRequest
from router.request.json_object import read_object
from router.server.chat import to_chat_prompt
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoice
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import FakeFleet, model_info
from tests.router.pipelines import TOKENIZER
from tests.router.server.test_grpc_server import refusal, serving
from tests.router.text.tool_templates import PARTS, QWEN3


def user(text):
    return pb.ChatMessage(role="user", content=text)


def test_every_field_of_a_chat_is_read():
    chat = pb.Chat(
        messages=[
            pb.ChatMessage(role="user", parts=[pb.TextPart(text="a"), pb.TextPart(text="b")]),
            pb.ChatMessage(
                role="assistant",
                content="c",
                reasoning="hm",
                tool_calls=[
                    pb.ToolCall(id="1", name="f", arguments='{"x": [1, 2.5, "é"]}'),
                    pb.ToolCall(id="2", name="g"),
                ],
            ),
            pb.ChatMessage(role="tool", content="d", tool_call_id="1", name="f"),
        ],
        tools=[
            pb.Tool(name="f", description="does", parameters='{"type": "object"}'),
            pb.Tool(name="g"),
        ],
        tool_choice=pb.ToolChoice(function_name="f"),
        chat_template_kwargs='{"enable_thinking": false}',
        add_generation_prompt=False,
        continue_final_message=True,
        raw_output=True,
    )

    prompt = to_chat_prompt(chat)

    assert prompt == ChatPrompt(
        messages=(
            ChatMessage(role="user", content="", parts=("a", "b")),
            ChatMessage(
                role="assistant",
                content="c",
                reasoning="hm",
                tool_calls=(
                    ToolCall(call_id="1", name="f", arguments={"x": [1, 2.5, "é"]}),
                    ToolCall(call_id="2", name="g", arguments={}),
                ),
            ),
            ChatMessage(role="tool", content="d", tool_call_id="1", name="f"),
        ),
        tools=(
            Tool(name="f", description="does", parameters={"type": "object"}),
            Tool(name="g"),
        ),
        function_name="f",
        template_kwargs={"enable_thinking": False},
        add_generation_prompt=False,
        continue_final_message=True,
        raw_output=True,
        num_json_bytes=21 + 18 + 26,
    )
    assert {field.name for field, _ in chat.ListFields()} == {
        field.name for field in pb.Chat.DESCRIPTOR.fields
    }


@pytest.mark.parametrize(
    ("mode", "choice"),
    [(0, ToolChoice.AUTO), (1, ToolChoice.NONE), (2, ToolChoice.AUTO), (3, ToolChoice.REQUIRED)],
)
def test_modes_of_the_tool_choice_are_read(mode, choice):
    prompt = to_chat_prompt(pb.Chat(tool_choice=pb.ToolChoice(mode=mode)))

    assert (prompt.tool_choice, prompt.function_name) == (choice, "")
    assert prompt.add_generation_prompt is None


DEEP = '{"a":' * MAX_JSON_DEPTH
BAD_JSON = {
    "text": ("hello", "cannot be read: Expecting value"),
    "list": ("[1]", "is no object"),
    "number": ("1", "is no object"),
    "cut": ('{"a": ', "cannot be read"),
    "NaN": ('{"a": NaN}', "cannot be read: NaN is no JSON"),
    "infinity": ('{"a": -Infinity}', "cannot be read: -Infinity is no JSON"),
    "large number": ('{"a": 1e999}', "cannot be read: 1e999 is too large"),
    "long number": ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
    "half a character": (r'{"a": "\ud83d"}', "cannot be read: .*surrogates not allowed"),
    "deep": (DEEP + "{}" + "}" * MAX_JSON_DEPTH, "has 65 levels, outside 1 to 64"),
    "deep and broken": ("[" * 500_000, "has 500000 levels, outside 1 to 64"),
    "quotes": ('{"a": "' + r"\"" * 400_000, "cannot be read"),
    "backslash": ('{"a": "\\', "cannot be read"),
    "two": ("{}{}", "cannot be read: Extra data"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_is_no_object_is_refused_by_field_and_value(name):
    text, message = BAD_JSON[name]

    with pytest.raises(InvalidRequest, match=message) as caught:
        read_object("chat.tools[0].parameters", text)

    status = caught.value.status
    assert status.reason == "BAD_CHAT"
    assert status.message.startswith("chat.tools[0].parameters ")
    assert status.metadata["field"] == "chat.tools[0].parameters"
    assert len(status.message) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=4), JSON), st.booleans())
def test_every_object_is_read_as_it_is(value, is_ascii):
    assert read_object("field", json.dumps(value, ensure_ascii=is_ascii)) == value


def test_deepest_object_allowed_is_read():
    text = DEEP + "1" + "}" * MAX_JSON_DEPTH
    assert read_object("field", text) == json.loads(text)
    assert read_object("field", json.dumps({"[" * 100: "{" * 100})) == {"[" * 100: "{" * 100}


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (pb.Chat(tools=[pb.Tool(parameters="x")]), "chat.tools[0].parameters"),
        (pb.Chat(chat_template_kwargs="[]"), "chat.chat_template_kwargs"),
        (
            pb.Chat(messages=[user("a"), pb.ChatMessage(tool_calls=[pb.ToolCall(arguments="x")])]),
            "chat.messages[1].tool_calls[0].arguments",
        ),
        (pb.Chat(tool_choice=pb.ToolChoice(mode=9)), "chat.tool_choice.mode"),
        (pb.Chat(tools=[pb.Tool(parameters=" " * (MAX_CHAT_JSON_BYTES // 2 + 1))] * 2), "chat"),
    ],
)
def test_field_of_a_wrong_value_is_named(chat, field):
    with pytest.raises(InvalidRequest) as caught:
        to_chat_prompt(chat)

    assert caught.value.status.reason == "BAD_CHAT"
    assert caught.value.status.metadata["field"] == field


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (pb.Chat(tools=[pb.Tool(name="f")] * 10_000), "chat.tools"),
        (pb.Chat(messages=[pb.ChatMessage(parts=[pb.TextPart()] * 513)]), "chat.messages.parts"),
        (
            pb.Chat(messages=[pb.ChatMessage(tool_calls=[pb.ToolCall()] * 513)]),
            "chat.messages.tool_calls",
        ),
        (pb.Chat(chat_template_kwargs="x" * 65_537), "chat.chat_template_kwargs"),
    ],
)
def test_message_out_of_bounds_is_refused_on_the_wire(chat, field):
    request = pb.GenerateRequest(chat=chat)

    refused = MessageParser(pb.GenerateRequest)(request.SerializeToString())

    assert (refused.metadata["field"], refused.reason) == (field, "BAD_CHAT")


async def test_answer_carries_reasoning_text_and_calls_in_fields_of_their_own():
    fleet = FakeFleet(model_info(max_model_len=1000))
    fleet.files = small_tokenizer.files(chat_template=QWEN3)
    said = '<think>\nhm\n</think>\n\nok <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    fleet.answer(*([token_id] for token_id in TOKENIZER.encode_text(said)), [1], stop_token_id=1)
    chat = pb.Chat(messages=[user("go")], tools=[pb.Tool(name="f")])

    async with serving(fleet, max_queued_prompt_tokens=1000) as (service, _):
        answer = [one async for one in service.Generate(pb.GenerateRequest(chat=chat), timeout=10)]

    assert "".join(one.reasoning_text for one in answer) == "hm"
    assert "".join(one.text for one in answer) == "ok"
    calls = [call for one in answer for call in one.tool_calls]
    assert [(call.index, call.name) for call in calls if call.name] == [(0, "f")]
    assert calls[0].id.startswith("call_")
    assert not any(call.id for call in calls[1:])
    assert "".join(call.arguments for call in calls) == "{}"
    assert answer[-1].finish.reason == pb.FINISH_REASON_TOOL_CALLS
    assert answer[-1].finish.stop_token_id == 1


async def test_chat_is_tokenized_with_its_tools_and_refused_by_name():
    fleet = FakeFleet(model_info(max_model_len=1000))
    fleet.files = small_tokenizer.files(chat_template=PARTS + "{{ tools|length if tools else 0 }}")
    parts = pb.ChatMessage(role="user", parts=[pb.TextPart(text="a"), pb.TextPart(text="b")])
    chat = pb.Chat(messages=[parts], tools=[pb.Tool(name="f")])

    async with serving(fleet) as (service, _):
        answer = await service.Tokenize(pb.TokenizeRequest(chat=chat), timeout=10)
        chat.tools.add(name="f")
        code, error = await refusal(service.Tokenize(pb.TokenizeRequest(chat=chat), timeout=10))

    text = TOKENIZER.decode(answer.token_ids, skip_special_tokens=False)
    assert text == "(text a)(text b)1"
    assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_CHAT")
    assert error.message.startswith("chat.tools[1].name is 'f'; it must be a name that no other")
