"""Anthropic's messages over HTTP: what engines are asked, and what clients get."""

import json
import sys

import pytest

from protos.wire.sampling_params import Grammar
from tests.router.http.anthropic.conftest import TOKENIZER
from tests.router.http.anthropic.requests import CALLS, THINKS, TOOL, USER

pytestmark = pytest.mark.asyncio(loop_scope="module")

THINKING = {"type": "thinking", "thinking": "hm", "signature": ""}
ARGUMENTS = {"city": "Köln"}


def without_ids(content):
    """Returns blocks without the IDs of calls, which are random."""
    return [{name: block[name] for name in block if name != "id"} for block in content]


USE = {"type": "tool_use", "name": "weather", "input": ARGUMENTS}


@pytest.mark.parametrize(
    ("said", "content", "reason"),
    [
        ("Hello.", [{"type": "text", "text": "Hello."}], "end_turn"),
        (THINKS + "ok", [THINKING, {"type": "text", "text": "ok"}], "end_turn"),
        (CALLS, [USE], "tool_use"),
        (THINKS + "ok " + CALLS, [THINKING, {"type": "text", "text": "ok"}, USE], "tool_use"),
        (CALLS + "\n" + CALLS, [USE, USE], "tool_use"),
        (CALLS + " Done.", [USE, {"type": "text", "text": "Done."}], "tool_use"),
        ("", [], "end_turn"),
    ],
)
async def test_answer_has_blocks_in_the_order_in_which_they_come(door, said, content, reason):
    answer = (await door.post(said, tools=[TOOL])).json()

    assert answer.pop("id").startswith("msg_")
    usage = answer.pop("usage")
    assert without_ids(answer.pop("content")) == content
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "small",
        "stop_reason": reason,
        "stop_sequence": None,
    }
    assert usage["output_tokens"] >= 1
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (16, 0)


async def test_input_tokens_are_those_that_were_not_cached(door):
    usage = (await door.post()).json()["usage"]

    assert usage["input_tokens"] == len(door.request.prompt_token_ids) - 16


async def test_message_ends_with_max_tokens_even_in_a_call(door):
    text = CALLS[: CALLS.index("ln")]
    most = len(TOKENIZER.encode_text(text))
    answer = (await door.post(text, is_cut=True, tools=[TOOL], max_tokens=most)).json()

    assert answer["stop_reason"] == "max_tokens"
    assert without_ids(answer["content"]) == [{**USE, "input": {}}]


async def test_max_tokens_beyond_the_room_is_lowered_to_it_and_the_end_is_told_as_such(door):
    answer = (await door.post(is_cut=True, max_tokens=2**31 - 1)).json()
    *_, end, _ = await door.events(is_cut=True, max_tokens=10_000)

    # The fleet's model holds 2000 tokens.
    asked = [
        len(one.prompt_token_ids) + one.sampling_params.max_tokens for one in door.fleet.requests
    ]
    assert asked == [2000, 2000]
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert end["delta"]["stop_reason"] == "model_context_window_exceeded"


async def test_numbers_that_no_client_can_hold_become_the_largest(door):
    said = CALLS.replace('"Köln"', "[1e999, -1e999]")
    answer = (await door.post(said, tools=[TOOL])).json()

    assert answer["content"][0]["input"]["city"] == [sys.float_info.max, -sys.float_info.max]


async def test_stop_sequence_is_told(door):
    answer = (await door.post("one two three", stop_sequences=["three", "two"])).json()

    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "two")
    assert answer["content"] == [{"type": "text", "text": "one "}]
    assert door.fleet.num_open == 0


async def test_sampling_parameters_reach_the_engine(door):
    await door.post(temperature=0.5, top_p=0.25, top_k=7, max_tokens=9, metadata={"user_id": "u"})

    params = door.request.sampling_params
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.25, 7)
    assert params.max_tokens == 9


async def test_events_of_a_message_are_those_of_anthropic(door):
    found = await door.events(THINKS + "ok " + CALLS, tools=[TOOL])

    start = found[0]["message"]
    assert start["content"] == []
    assert (start["stop_reason"], start["usage"]["output_tokens"]) == (None, 0)
    assert start["usage"]["cache_read_input_tokens"] == 16
    kinds = [
        (event["type"], event.get("index"), event.get("delta", {}).get("type")) for event in found
    ]
    once = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
    assert once == [
        ("message_start", None, None),
        ("ping", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, None),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]
    blocks = [event["content_block"] for event in found if "content_block" in event]
    assert without_ids(blocks) == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "name": "weather", "input": {}},
    ]
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    texts = {
        name: "".join(delta.get(name, "") for delta in deltas)
        for name in ("thinking", "text", "partial_json")
    }
    assert (texts["thinking"], texts["text"]) == ("hm", "ok")
    assert json.loads(texts["partial_json"]) == ARGUMENTS
    end = found[-2]
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"]["input_tokens"] == start["usage"]["input_tokens"]
    assert end["usage"]["output_tokens"] > 0


async def test_text_of_any_characters_is_one_line_each(door):
    said = 'a "b"\\ \n\n\r é 😀 \x85 \u2028'
    found = await door.events(said)
    answer = await door.post(said, stream=True)

    deltas = [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(deltas) == said
    assert len(deltas) > 5
    assert answer.text.splitlines() == answer.text.removesuffix("\n").split("\n")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_thinking_can_be_left_out(door, is_stream):
    thinking = {"type": "adaptive", "display": "omitted"}
    if is_stream:
        found = await door.events(THINKS + "ok", thinking=thinking)
        deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
        assert deltas[0] == {"type": "signature_delta", "signature": ""}
        assert {delta["type"] for delta in deltas[1:]} == {"text_delta"}
    else:
        content = (await door.post(THINKS + "ok", thinking=thinking)).json()["content"]
        assert content == [{**THINKING, "thinking": ""}, {"type": "text", "text": "ok"}]


@pytest.mark.parametrize(
    ("thinking", "is_off"),
    [
        (None, False),
        ({"type": "disabled"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, False),
        ({"type": "adaptive"}, False),
    ],
)
async def test_thinking_is_switched_in_the_prompt(door, thinking, is_off):
    await door.post(thinking=thinking)

    assert door.prompt.endswith("<think>\n\n</think>\n\n") == is_off


@pytest.mark.parametrize("name", ["output_format", "output_config"])
async def test_schema_of_the_answer_is_a_grammar(door, name):
    form = {"type": "json_schema", "schema": {"type": "object"}}
    await door.post("{}", **{name: form if name == "output_format" else {"format": form}})

    grammar = door.request.sampling_params.grammar
    assert grammar == Grammar(form="json_schema", text='{"type": "object"}')


async def test_cut_off_call_that_must_be_made_is_held_to_its_schema(door):
    await door.post(CALLS, tools=[{**TOOL, "strict": True}], tool_choice={"type": "any"})

    grammar = door.request.sampling_params.grammar
    assert grammar.form == "lark"
    assert '"city"' in grammar.text


async def test_only_the_named_tool_can_be_called(door):
    tools = [TOOL, {**TOOL, "name": "time"}]
    await door.post(CALLS, tools=tools, tool_choice={"type": "tool", "name": "time"})

    text = door.request.sampling_params.grammar.text
    assert "time" in text
    assert "weather" not in text


@pytest.mark.parametrize("kind", ["auto", "any"])
async def test_parallel_calls_can_be_forbidden(door, kind):
    said = CALLS + "\n" + CALLS
    choice = {"type": kind, "disable_parallel_tool_use": True}
    answer = (await door.post(said, tools=[TOOL], tool_choice=choice)).json()

    assert (without_ids(answer["content"]), answer["stop_reason"]) == ([USE], "tool_use")
    assert door.fleet.num_open == 0


async def test_tools_are_not_shown_if_none_may_be_called(door):
    answer = (await door.post(CALLS, tools=[TOOL], tool_choice={"type": "none"})).json()

    assert "weather" not in door.prompt
    assert answer["content"] == [{"type": "text", "text": CALLS}]


async def test_last_message_of_the_assistant_is_continued(door):
    messages = [USER, {"role": "assistant", "content": "It is"}]
    answer = (await door.post(" ok", messages=messages)).json()

    assert door.prompt.endswith("It is")
    assert answer["content"] == [{"type": "text", "text": " ok"}]


async def test_tokens_are_counted_as_they_are_sent(door):
    content = {"messages": [USER], "tools": [TOOL], "system": "Be nice."}
    await door.post(**content)
    request = {"model": "small", **content}
    answer = await door.send("/v1/messages/count_tokens", json=request)

    assert answer.json() == {"input_tokens": len(door.request.prompt_token_ids)}
    assert len(door.fleet.requests) == 1
