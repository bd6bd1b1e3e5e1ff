"""Chat completions over HTTP: what becomes of the fields of a request."""

import json

import pytest

from protos.wire.sampling_params import LogitBias
from tests.router.http.chat.chats import CALL, TOOLS, USER, ChatFleet, ask, whole
from tests.router.http.served_fleet import prompt_of, say
from tests.router.http.serving import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_parameters_reach_the_engine(fleet):
    say(fleet, "a")

    await whole(
        fleet,
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        seed=3,
        logit_bias={"5": -1},
        min_p=0.1,
        response_format={"type": "json_object"},
        cache_salt="salt",
        priority=2,
    )

    [sent] = fleet.requests
    params = sent.sampling_params
    assert (sent.cache_salt, sent.priority) == ("salt", 2)
    assert (params.max_tokens, params.temperature, params.top_p, params.seed) == (9, 0, 0.5, 3)
    assert (params.min_p, params.logit_bias) == (0.1, (LogitBias(5, -1),))
    assert params.grammar.form == "json_object"


async def test_own_answers_and_results_can_be_sent_back(tool_fleet):
    say(tool_fleet, f"<think>\nhm\n</think>\n\nI call.\n{CALL}")
    [choice] = (await whole(tool_fleet, tools=TOOLS))["choices"]
    say(tool_fleet, "ok")

    call_id = choice["message"]["tool_calls"][0]["id"]
    result = {"role": "tool", "tool_call_id": call_id, "content": [{"type": "text", "text": "42"}]}
    extras = {"annotations": [], "audio": None, "function_call": None}
    turns = [USER, {**choice["message"], **extras}, result]
    await whole(tool_fleet, messages=turns, tools=TOOLS)

    sent = prompt_of(tool_fleet, 1)
    assert "<think>\nhm\n</think>\n\nI call." in sent
    assert '{"name": "f", "arguments": {"x": "é😀"}}' in sent
    assert "<tool_response>\n42\n</tool_response>" in sent


async def test_functions_of_old_are_calls_of_tools(tool_fleet):
    say(tool_fleet, "ok")

    called = {"name": "f", "arguments": '{"x": "y"}'}
    turns = [
        USER,
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "function", "name": "f", "content": "42"},
    ]
    await whole(tool_fleet, messages=turns)

    sent = prompt_of(tool_fleet)
    assert '<tool_call>\n{"name": "f", "arguments": {"x": "y"}}\n</tool_call>' in sent
    assert "<tool_response>\n42\n</tool_response>" in sent


async def test_content_in_parts_is_text_in_lines(fleet):
    say(fleet, "ok")

    parts = [{"type": "text", "text": text} for text in ("one", "two")]
    await whole(fleet, messages=[{"role": "user", "content": parts}])

    assert "user\none\ntwo<|im_end|>" in prompt_of(fleet)


async def test_effort_of_reasoning_reaches_the_template():
    names = ("reasoning_effort", "enable_thinking")
    template = "/".join(f"{{{{ {name} | default('unset') }}}}" for name in names)
    fleet = ChatFleet(template=template)
    cases = [
        ({"reasoning_effort": "none"}, "none/False"),
        ({"reasoning_effort": "high"}, "high/unset"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "unset/True"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": 1}}, "none/1"),
    ]
    async with serving(fleet) as fleet.port:
        for fields, _ in cases:
            say(fleet, "ok")
            await whole(fleet, **fields)

    assert [prompt_of(fleet, number) for number in range(4)] == [text for _, text in cases]


async def test_last_message_is_continued(fleet):
    say(fleet, "c")

    turns = [USER, {"role": "assistant", "content": "a b"}]
    await whole(fleet, messages=turns, continue_final_message=True, add_generation_prompt=False)

    assert prompt_of(fleet).endswith("assistant\na b")


ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}


@pytest.mark.parametrize(
    ("choice", "shown", "callable_"),
    [
        ("auto", "fg", ""),
        ("none", "", ""),
        ("required", "fg", "fg"),
        ({"type": "function", "function": {"name": "g"}}, "fg", "g"),
        ({"type": "allowed_tools", "allowed_tools": ALLOWED}, "g", ""),
        ({"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "required"}}, "g", "g"),
    ],
)
async def test_tool_choice_says_what_is_shown_and_what_is_called(
    choice, shown, callable_, tool_fleet
):
    say(tool_fleet, CALL)

    await whole(tool_fleet, tools=TOOLS, tool_choice=choice)

    sent, grammar = prompt_of(tool_fleet), tool_fleet.requests[0].sampling_params.grammar
    assert [name for name in "fg" if f'{{"name": "{name}"' in sent] == list(shown)
    rules = grammar.text if grammar else ""
    assert [name for name in "fg" if json.dumps(f'"{name}"')[1:-1] in rules] == list(callable_)


# What each of these programs sends beside the messages; their messages are here as they make them.
TEXT_PART = [{"type": "text", "text": "go"}]
USAGE = {"include_usage": True, "continuous_usage_stats": True}
PROGRAMS = {
    "guidellm": {
        "messages": [{"role": "user", "content": TEXT_PART}],
        "stream": True, "stream_options": USAGE, "max_tokens": 9, "max_completion_tokens": 9,
        "stop": None, "ignore_eos": True,
    },
    "aiperf": {
        "messages": [{"role": "user", "name": "", "content": TEXT_PART}],
        "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 9,
        "min_tokens": 1,
    },
    "lm-eval": {
        "messages": [{"role": "user", "content": "go", "type": "text"}],
        "max_tokens": 9, "temperature": 0, "stop": ["\n\n"], "seed": 1234,
    },
    "langchain": {
        "messages": [{"role": "user", "content": "go"}],
        "n": 1, "temperature": 0.7, "top_p": 1, "stream": False,
    },
    "evalscope": {
        "messages": [{"role": "user", "content": "go"}],
        "max_tokens": 9, "min_tokens": 1, "seed": 0, "temperature": 0.0, "top_k": 1, "stop": [],
        "repetition_penalty": 1.0, "frequency_penalty": 0, "logprobs": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
async def test_requests_of_programs_are_served(program, fleet):
    say(fleet, "a")

    answer = await ask(fleet, model="small", **PROGRAMS[program])

    assert '"content":"a"' in answer.text
    assert prompt_of(fleet) == "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"
