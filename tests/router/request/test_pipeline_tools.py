"""Chats with tools and reasoning through the pipeline: what engines get, and what clients get."""

import json

import pytest

from protos.wire.sampling_params import Grammar, SamplingParams
from router.errors import InvalidRequest
from router.request.pipeline import Bounds, Pipeline
from router.text.chat_template import TemplateSettings
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import FinishReason
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoice
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.pipelines import TOKENIZER, Recorder, collect, request
from tests.router.text.tool_templates import QWEN3

TOOLS = (Tool(name="f", description="Does it."), Tool(name="g"))
SAID = '<think>\nhm\n</think>\n\nI call.\n<tool_call>\n{"name": "f", "arguments": {"x": "é😀"}}\n'
SAID += "</tool_call>"
LARGE = Bounds(
    max_concurrent_requests=2,
    max_prompt_bytes=100_000,
    max_request_bytes=200_000,
    max_queued_prompt_tokens=20_000,
)


@pytest.fixture
def fleet():
    fleet = FakeFleet(model_info(max_model_len=4096, supported_params=ALL_PARAMS))
    fleet.files = small_tokenizer.files(chat_template=QWEN3)
    return fleet


def pipeline_of(fleet, tokenizers):
    return Pipeline(fleet, tokenizers, Recorder(), LARGE)


async def answer(fleet, chat, said=SAID, settings=None, **changes):
    token_ids = TOKENIZER.encode_text(said).tolist()
    fleet.answer(*([token_id] for token_id in token_ids), [1], stop_token_id=1)
    with TokenizerPool(fleet.fetch_tokenizer, 1, settings=settings) as tokenizers:
        deltas = await collect(pipeline_of(fleet, tokenizers), request(chat, **changes))
    generated = [token_id for delta in deltas for token_id in delta.token_ids]
    assert generated == [*token_ids, 1], "token_ids are all tokens, whatever the text is"
    return deltas


def chat_of(**changes):
    values = {"messages": (ChatMessage(role="user", content="go"),), "tools": TOOLS}
    return ChatPrompt(**{**values, **changes})


def joined(deltas):
    calls = [call for delta in deltas for call in delta.tool_calls]
    return (
        "".join(delta.reasoning for delta in deltas),
        "".join(delta.text for delta in deltas),
        [call.name for call in calls if call.name],
        "".join(call.arguments for call in calls),
        deltas[-1].finish.reason,
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_answer_that_may_have_one_call_ends_with_it(fleet, size):
    token_ids = TOKENIZER.encode_text(SAID + " " + SAID).tolist()
    chunks = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    fleet.answer(*chunks, [1], stop_token_id=1)
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        chat = request(chat_of(parallel_calls=False))
        deltas = await collect(pipeline_of(fleet, tokenizers), chat)

    assert [call.index for delta in deltas for call in delta.tool_calls if call.name] == [0]
    assert joined(deltas)[3:] == ('{"x": "é😀"}', FinishReason.TOOL_CALLS)
    num_tokens = sum(len(delta.token_ids) for delta in deltas)
    assert deltas[-1].finish.num_completion_tokens == num_tokens
    assert num_tokens < len(token_ids) or size == 1000
    assert fleet.num_open == 0


async def test_reasoning_content_and_calls_come_in_fields_of_their_own(fleet):
    deltas = await answer(fleet, chat_of())

    expected = ("hm", "I call.", ["f"], '{"x": "é😀"}', FinishReason.TOOL_CALLS)
    assert joined(deltas) == expected
    assert sum(bool(delta.tool_calls) for delta in deltas) > 3, "as they come"
    sent = TOKENIZER.decode(fleet.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert '<tools>\n{"type": "function", "function": {"name": "f", ' in sent
    assert fleet.requests[0].sampling_params.grammar is None


async def test_chat_without_tools_keeps_what_looks_like_a_call(fleet):
    deltas = await answer(fleet, chat_of(tools=()))

    content = SAID.split("</think>\n\n")[1]
    assert joined(deltas) == ("hm", content, [], "", FinishReason.STOP)


async def test_raw_output_is_the_text_as_it_is(fleet):
    deltas = await answer(fleet, chat_of(raw_output=True))

    assert joined(deltas) == ("", SAID, [], "", FinishReason.STOP)


async def test_parsers_can_be_switched_off_by_the_operator(fleet):
    settings = TemplateSettings(tool_call_parser="none", reasoning_parser="none")

    deltas = await answer(fleet, chat_of(), settings=settings)

    assert joined(deltas) == ("", SAID, [], "", FinishReason.STOP)


async def test_chat_that_does_not_think_has_no_reasoning(fleet):
    chat = chat_of(template_kwargs={"enable_thinking": False})

    deltas = await answer(fleet, chat, "Done. <think>")

    assert joined(deltas) == ("", "Done. <think>", [], "", FinishReason.STOP)
    sent = TOKENIZER.decode(fleet.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert sent.endswith("<think>\n\n</think>\n\n")


async def test_reasoning_that_the_template_begins_is_reasoning(fleet):
    fleet.files = small_tokenizer.files(
        chat_template="{{ messages[0].content }}{# </think> #}<think>\n"
    )

    deltas = await answer(fleet, chat_of(tools=()), "hm</think>\nYes")

    assert joined(deltas)[:2] == ("hm", "Yes")


async def test_tags_that_are_special_tokens_are_seen(fleet):
    # START is a special token, which has no text of its own.
    fleet.files = small_tokenizer.files(
        chat_template="{{ tools }}[TOOL_CALLS]{{ messages[0].content }}"
    )
    files = {
        name: content.replace(small_tokenizer.START.encode(), b"[TOOL_CALLS]")
        for name, content in fleet.files.items()
    }
    fleet.files = files
    start = TOKENIZER.backend.token_to_id(small_tokenizer.START)
    before, behind = (TOKENIZER.encode_text(text).tolist() for text in ("é", '[{"name": "f"'))
    rest = TOKENIZER.encode_text(', "arguments": {}}]').tolist()
    fleet.answer([*before, start, *behind], rest, [1], stop_token_id=1)

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        deltas = await collect(pipeline_of(fleet, tokenizers), request(chat_of()))

    assert joined(deltas) == ("", "é", ["f"], "{}", FinishReason.TOOL_CALLS)


async def test_cut_answer_ends_by_its_length_and_loses_nothing(fleet):
    token_ids = TOKENIZER.encode_text("<think>\nhm</think>ok <tool_call>\n{").tolist()
    fleet.answer(token_ids)

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        deltas = await collect(pipeline_of(fleet, tokenizers), request(chat_of()))

    assert joined(deltas) == ("hm", "ok <tool_call>\n{", [], "", FinishReason.LENGTH)


async def test_tool_choice_becomes_a_grammar_of_the_request(fleet):
    await answer(fleet, chat_of(tool_choice=ToolChoice.REQUIRED))

    grammar = fleet.requests[0].sampling_params.grammar
    assert grammar.form == "lark"
    assert "call: call_0 | call_1" in grammar.text


async def test_operators_template_replaces_the_models_own(fleet):
    settings = TemplateSettings(source="{{ messages[0].content }} it is")

    await answer(fleet, chat_of(tools=()), settings=settings)

    sent = TOKENIZER.decode(fleet.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert sent == "go it is"


def user(**fields):
    return (ChatMessage(role="user", content="a", **fields),)


def caller(**fields):
    call = {"call_id": "1", "name": "f", "arguments": {}, **fields}
    return (ChatMessage(role="assistant", content="", tool_calls=(ToolCall(**call),)),)


BAD = {
    "calls of a user": (
        {"messages": user(tool_calls=(ToolCall(call_id="", name="f", arguments={}),))},
        r"messages\[0\].tool_calls is '1 calls'; it must be unset in a message of the user",
    ),
    "reasoning of a user": ({"messages": user(reasoning="hm")}, r"\[0\].reasoning is 'hm'; it"),
    "ID of a user": ({"messages": user(tool_call_id="1")}, r"\[0\].tool_call_id is '1'; it must"),
    "both contents": ({"messages": user(parts=("b",))}, r"\[0\].parts is '1 parts'; it must be"),
    "parts": (
        {"messages": (ChatMessage(role="user", content="", parts=("",) * 513),)},
        r"chat.messages\[0\].parts has 513 entries, outside 0 to 512",
    ),
    "parts of all": (
        {"messages": (ChatMessage(role="user", content="", parts=("",) * 512),) * 9},
        "chat.messages has 4608 parts in all, outside 0 to 4096",
    ),
    "calls of all": (
        {
            "messages": caller()[:1] * 1
            + (ChatMessage(role="assistant", content="", tool_calls=caller()[0].tool_calls * 512),)
            * 8
        },
        "chat.messages has 4097 tool calls in all, outside 0 to 4096",
    ),
    "name of a call": ({"messages": caller(name="f g")}, r"tool_calls\[0\].name is 'f g'; it must"),
    "ID of a call": ({"messages": caller(call_id="1" * 257)}, r"\[0\].id has 257 characters"),
    "name of a speaker": ({"messages": user(name="x" * 257)}, r"name has 257 characters"),
    "tools": (
        {"tools": tuple(Tool(name=f"f{i}") for i in range(10_000))},
        "chat.tools has 10000 entries, outside 0 to 512",
    ),
    "name of a tool": ({"tools": (Tool(name=""),)}, r"tools\[0\].name is ''; it must be 1 to 128"),
    "two of a name": ({"tools": TOOLS + TOOLS[:1]}, r"tools\[2\].name is 'f'; it must be a name"),
    "no object": (
        {"tools": (Tool(name="f", parameters={"type": "array"}),)},
        r"tools\[0\].parameters.type is 'array'; it must be \"object\" or unset",
    ),
    "choice without tools": (
        {"tools": (), "tool_choice": ToolChoice.REQUIRED},
        "chat.tool_choice is 'required'; it must be unset, none or auto, as chat.tools is empty",
    ),
    "function without tools": ({"tools": (), "function_name": "f"}, "tool_choice is 'f'; it must"),
    "unknown function": (
        {"function_name": "h"},
        "chat.tool_choice.function_name is 'h'; it must be one of f, g",
    ),
    "shadow": ({"template_kwargs": {"messages": []}}, "chat_template_kwargs is 'messages'; it"),
    "no name": ({"template_kwargs": {"a b": 1}}, "chat_template_kwargs is 'a b'; it must be a nam"),
    "hidden name": ({"template_kwargs": {"__class__": 1}}, "kwargs is '__class__'; it must be"),
    "many variables": (
        {"template_kwargs": {f"a{i}": 1 for i in range(65)}},
        "chat.chat_template_kwargs has 65 entries, outside 0 to 64",
    ),
    "continued question": (
        {"continue_final_message": True},
        "continue_final_message is 'true'; it must be false, as the last message is not an",
    ),
    "continued and answered": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message is 'true'; it must be false, as add_generation_prompt is true",
    ),
    "continued and called": (
        {"continue_final_message": True, "tool_choice": ToolChoice.REQUIRED},
        "continue_final_message is 'true'; it must be false, as tool_choice is required",
    ),
    "large": (
        {"tools": (Tool(name="f", description="é" * 50_000),)},
        "chat.messages has 100003 bytes, over max_prompt_bytes 100000",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_chat_that_contradicts_itself_is_refused_before_any_work(fleet, name):
    changes, message = BAD[name]

    with (
        TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers,
        pytest.raises(InvalidRequest, match=message) as caught,
    ):
        await collect(pipeline_of(fleet, tokenizers), request(chat_of(**changes)))

    status = caught.value.status
    assert status.reason in ("BAD_CHAT", "PROMPT_TOO_LONG")
    assert set(status.metadata) == {"field", "value", "bounds"}
    assert len(status.message) < 400
    assert fleet.num_fetches == 0
    assert fleet.requests == []


async def test_own_grammar_and_a_tool_choice_exclude_each_other(fleet):
    params = SamplingParams(grammar=Grammar(form="json_object"))
    chat = chat_of(function_name="f")

    with (
        TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers,
        pytest.raises(InvalidRequest, match=r"grammar is set, but chat.tool_choice is f, which"),
    ):
        await collect(pipeline_of(fleet, tokenizers), request(chat, sampling_params=params))

    assert fleet.num_fetches == 0


async def test_neutral_choices_without_tools_are_accepted(fleet):
    for choice in (ToolChoice.NONE, ToolChoice.AUTO):
        deltas = await answer(fleet, chat_of(tools=(), tool_choice=choice), "ok")
        assert joined(deltas)[1] == "ok"


async def test_next_turn_takes_back_what_the_last_one_gave(fleet):
    deltas = await answer(fleet, chat_of())
    reasoning, content, (name,), arguments, _ = joined(deltas)
    call = ToolCall(call_id="call_1", name=name, arguments=json.loads(arguments))
    back = ChatMessage(role="assistant", content=content, reasoning=reasoning, tool_calls=(call,))
    result = ChatMessage(role="tool", content="done", tool_call_id="call_1")

    await answer(fleet, chat_of(messages=(ChatMessage(role="user", content="go"), back, result)))

    sent = TOKENIZER.decode(fleet.requests[1].prompt_token_ids, skip_special_tokens=False)
    assert f"<|im_start|>assistant\n{SAID}<|im_end|>\n" in sent


@pytest.mark.parametrize(
    ("stop", "reasoning", "content", "num_calls"),
    [
        ("call.", "hm", "I ", 0),
        ("m\n</th", "h", "", 0),
        ('", "arg', "hm", 'I call.\n<tool_call>\n{"name": "f', 0),
        ("\n</tool_call>!", "hm", "I call.", 1),
    ],
)
async def test_stop_text_ends_the_text_that_is_parsed(fleet, stop, reasoning, content, num_calls):
    token_ids = TOKENIZER.encode_text(f"{SAID}!").tolist()
    fleet.answer(*([token_id] for token_id in token_ids), [1], stop_token_id=1)
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        deltas = await collect(pipeline_of(fleet, tokenizers), request(chat_of(), stop=(stop,)))

    assert "".join(delta.reasoning for delta in deltas) == reasoning
    assert "".join(delta.text for delta in deltas).startswith(content)
    assert deltas[-1].finish.stop_text == stop
    calls = {call.index for delta in deltas for call in delta.tool_calls}
    assert len(calls) >= num_calls
