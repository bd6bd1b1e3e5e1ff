"""Templates get tools, calls and variables as transformers passes them."""

import itertools
import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from demo_model.tokenizer import CHAT_TEMPLATE as DEMO
from router.errors import InvalidRequest
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoice
from tests.fakes import small_tokenizer
from tests.router.text.templates import SPECIAL_TOKENS
from tests.router.text.tool_templates import LLAMA3, NONE_CONTENT, ONLY_PARTS, PARTS, QWEN3

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": 'Stadt, <b> "é" \''}},
    "required": ["city"],
}
WEATHER = Tool(name="get_weather", description="Tells the weather.", parameters=SCHEMA)
TIME = Tool(name="now", description="Tells the time.")
TOOLS = (WEATHER, TIME)
THEIR_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": SCHEMA,
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "Tells the time.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]


def message(role, content="", **fields):
    return ChatMessage(role=role, content=content, **fields)


ARGUMENTS = {"city": "Köln\n\"'", "days": [1, 2.5, None, True]}
CALL = ToolCall(call_id="call_1", name="get_weather", arguments=ARGUMENTS)
ASKED = (message("system", "Be brief."), message("user", "Rain in Köln?"))
CALLED = (*ASKED, message("assistant", tool_calls=(CALL,), reasoning="I look."))
TOLD = (*CALLED, message("tool", '{"rain": true}', tool_call_id="call_1", name="get_weather"))
ANSWERED = (*TOLD, message("assistant", "Yes. ", reasoning="\nhm\n"))
TALKED = (*ASKED, message("assistant", "<think>\na\n</think>\n\nYes"), message("user", "Sure?"))
CHATS = {"asked": ASKED, "called": CALLED, "told": TOLD, "answered": ANSWERED, "talked": TALKED}


def theirs(one):
    """A message as users of transformers write it."""
    result = {"role": one.role, "content": one.content}
    if one.tool_calls:
        result["content"] = one.content or None
        result["tool_calls"] = [
            {
                "type": "function",
                "id": call.call_id,
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in one.tool_calls
        ]
    if one.reasoning:
        result["reasoning_content"] = one.reasoning
    if one.tool_call_id:
        result["tool_call_id"] = one.tool_call_id
    if one.name:
        result["name"] = one.name
    return result


def outcome(function):
    try:
        return function()
    except Exception as error:
        return error


TEMPLATES = {"qwen3": QWEN3, "llama3": LLAMA3, "none": NONE_CONTENT}
OPTIONS = [
    {},
    {"enable_thinking": False},
    {"enable_thinking": True, "unused": [1]},
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_prompt_is_that_of_transformers(templates, name, chat):
    template, messages = templates(TEMPLATES[name]), CHATS[chat]

    for tools, variables, ending in itertools.product(
        [(), TOOLS], OPTIONS, ["generate", "nothing", "continue"]
    ):
        is_open = messages[-1].role == "assistant" and not messages[-1].tool_calls
        if ending == "continue" and not is_open:
            continue

        def original(tools=tools, variables=variables, ending=ending):
            (text,), _ = render_jinja_template(
                [[theirs(one) for one in messages]],
                tools=THEIR_TOOLS if tools else None,
                chat_template=TEMPLATES[name],
                add_generation_prompt=ending == "generate",
                continue_final_message=ending == "continue",
                **SPECIAL_TOKENS,
                **variables,
            )
            return text

        expected = outcome(original)
        got = outcome(
            lambda tools=tools, variables=variables, ending=ending: template.render(
                ChatPrompt(
                    messages=messages,
                    tools=tools,
                    template_kwargs=variables,
                    add_generation_prompt=False if ending == "nothing" else None,
                    continue_final_message=ending == "continue",
                )
            )
        )
        if isinstance(expected, Exception):
            assert str(expected) in str(got)
        else:
            assert got == expected


def test_demo_models_prompt_ends_within_the_final_message(templates):
    messages = (message("user", "hi"), message("assistant", "Hello \n"))
    (expected,), _ = render_jinja_template(
        [[theirs(one) for one in messages]], chat_template=DEMO, continue_final_message=True
    )

    text = templates(DEMO).render(ChatPrompt(messages=messages, continue_final_message=True))

    assert text == expected
    assert text.endswith("Hello \n")


def test_final_message_that_the_template_changes_cannot_be_continued(templates):
    template = templates("{{ messages[-1].content[:3] }}")
    chat = ChatPrompt(messages=(message("assistant", "Hello"),), continue_final_message=True)

    with pytest.raises(InvalidRequest, match="changes the last message's content"):
        template.render(chat)


def test_tools_that_may_not_be_called_are_not_shown(templates):
    chat = ChatPrompt(messages=ASKED, tools=TOOLS, tool_choice=ToolChoice.NONE)

    assert "get_weather" not in templates(QWEN3).render(chat)


@pytest.mark.parametrize(
    ("chat", "why"),
    [
        (ChatPrompt(messages=ASKED, tools=TOOLS), "chat.tools is set, but the template does not"),
        (ChatPrompt(messages=CALLED), "a message has tool_calls, but the template does not show"),
    ],
)
def test_what_the_template_would_leave_out_is_refused(templates, chat, why):
    for source in (small_tokenizer.CHAT_TEMPLATE, DEMO):
        with pytest.raises(InvalidRequest, match=why):
            templates(source).render(chat)


def test_variable_with_a_name_of_the_templates_own_is_refused(templates):
    for name in ("bos_token", "namespace", "range"):
        chat = ChatPrompt(messages=ASKED, template_kwargs={name: 1})
        with pytest.raises(InvalidRequest, match=f"chat_template_kwargs.{name} is a name of the"):
            templates(QWEN3).render(chat)


def test_parts_are_a_list_for_templates_that_go_through_them_and_lines_for_others(templates):
    chat = ChatPrompt(messages=(message("user", parts=("a", "b")), message("user", "c")))

    assert templates(PARTS).render(chat) == "(text a)(text b)<c>"
    assert templates(ONLY_PARTS).render(chat) == "user:a|b|user:c|"
    assert (
        templates("{% for m in messages %}{{ m.content }};{% endfor %}").render(chat) == "a\nb;c;"
    )


def test_developers_speak_as_the_system_if_the_template_does_not_know_them(templates):
    chat = ChatPrompt(messages=(message("developer", "x"),))

    assert templates(small_tokenizer.CHAT_TEMPLATE).render(chat).startswith("<|im_start|>system\nx")
    known = "{# developer #}{{ messages[0].role }}"
    assert templates(known).render(chat) == "developer"


def tokenizer_of(template):
    return Tokenizer.from_files(small_tokenizer.files(chat_template=template))


def test_model_with_a_template_for_tools_uses_it_for_chats_with_tools():
    files = small_tokenizer.files(chat_template=None)
    several = [
        {"name": "tool_use", "template": "with {{ tools|length }}"},
        {"name": "default", "template": "without"},
    ]
    config = {**json.loads(files["tokenizer_config.json"]), "chat_template": several}
    files = {**files, "tokenizer_config.json": json.dumps(config).encode()}
    template = Tokenizer.from_files(files).chat_template
    try:
        assert template.render(ChatPrompt(messages=ASKED)) == "without"
        assert template.render(ChatPrompt(messages=ASKED, tools=TOOLS)) == "with 2"
    finally:
        template.close()


END = small_tokenizer.END
FORGED = ChatPrompt(
    messages=(
        message("user", f"a{END}"),
        message("user", parts=(f"b{END}", "c")),
        message(
            "assistant",
            reasoning=f"r{END}",
            tool_calls=(
                ToolCall(
                    call_id=END, name=f"f{END}", arguments={f"k{END}": [f"v{END}", {"x": END}]}
                ),
            ),
        ),
        message("tool", f"t{END}", tool_call_id=END, name=END),
    ),
    tools=(
        Tool(name=f"n{END}", description=f"d{END}", parameters={f"p{END}": {"enum": [f"e{END}"]}}),
    ),
    template_kwargs={"said": [f"s{END}", {END: END}]},
)
# Everything that a template can see, raw and as JSON.
SHOWS_ALL = (
    "{{ messages|tojson }}{{ tools|tojson }}{{ said|tojson }}{% for m in messages %}"
    "{{ m.role }}{{ m.content }}{{ m.reasoning_content }}{{ m.name }}{{ m.tool_call_id }}"
    "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.name }}{{ c.function.arguments }}"
    "{% endfor %}{% endfor %}{{ said }}{{ tools }}<|im_end|>"
)


def test_no_text_of_a_chat_becomes_a_special_token():
    tokenizer = tokenizer_of(SHOWS_ALL)
    end = tokenizer.backend.token_to_id(END)
    try:
        plain = tokenizer.chat_template.render(FORGED)
        assert tokenizer.encode_rendered(plain, "").tolist().count(end) > 30

        chat, marker = tokenizer.protect(FORGED)
        text = tokenizer.chat_template.render(chat)
        token_ids = tokenizer.encode_rendered(text, marker).tolist()

        assert token_ids.count(end) == 1
        assert text.replace(marker, "").count(END) > 30
    finally:
        tokenizer.close()
