"""Chats, and what a chat template makes of them in the router and in transformers."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolCall
from tests.tokenizers.comparison import Outcome

_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": 'Stadt, <b> "é" \''}},
    "required": ["city"],
}
_TOOLS = (
    Tool(name="get_weather", description="Tells the weather.", parameters=_SCHEMA),
    Tool(name="now", description="Tells the time.", parameters={"type": "object", "a": {}}),
)
_CALL = ToolCall(
    call_id="a1B2c3D4e",
    name="get_weather",
    arguments={"city": "Köln\n\"'", "days": [1, 2.5, None, True]},
)
_LONG_CALL = ToolCall(call_id="call_0123456789", name="now", arguments={})
_REFUSALS = ("the template does not show tools", "but the template does not show them")
"""What the router refuses, since the template would leave it out without a word."""


def say(role: str, content: str = "", **fields: object) -> ChatMessage:
    """Returns a message."""
    return ChatMessage(role=role, content=content, **fields)


_SYSTEM, ASKED = say("system", " Be brief.\n"), say("user", "  Rain in Köln? 😀\n")
_CALLED = say("assistant", tool_calls=(_CALL,))
_TOLD = say("tool", '{"rain": true}', tool_call_id="a1B2c3D4e", name="get_weather")
ANSWERED = say("assistant", " Yes.  ")
_CHATS = (
    (ASKED,),
    (say("user"),),
    (_SYSTEM, ASKED),
    (_SYSTEM, ASKED, ANSWERED, say("user", "Sure?\n\nReally?")),
    (ASKED, ANSWERED, say("user", "<<SYS>> [INST] é ▁")),
    (ASKED, say("user", "Sure?")),
    (ANSWERED, ASKED),
    (ASKED, ANSWERED),
    (_SYSTEM,),
    (ASKED, _SYSTEM, ASKED),
    (_SYSTEM, ASKED, _CALLED),
    (ASKED, _CALLED, _TOLD),
    (_SYSTEM, ASKED, _CALLED, _TOLD, ANSWERED, say("user", "And now?")),
    (ASKED, say("assistant", tool_calls=(_CALL, _LONG_CALL)), _TOLD),
    (ASKED, say("assistant", "I look. ", tool_calls=(_CALL,)), _TOLD),
    (ASKED, say("assistant", tool_calls=(_LONG_CALL,))),
)


def compare_chats(ours: Tokenizer, reference: PreTrainedTokenizerFast) -> tuple[Outcome, int]:
    """Compares text and tokens of chats, or the template's error.

    Returns:
        The outcome, and how many chats the template refused.
    """
    outcome, num_errors = Outcome(), 0
    knows_none = "['content'] is none" in str(reference.chat_template)
    for messages in _CHATS:
        if knows_none and any(message.tool_calls for message in messages):
            # transformers leaves a content of None out, and so does the router unless the template
            # asks for it, as DeepSeek's does: it then takes the message for an answer in words.
            continue
        for tools in ((), _TOOLS):
            got = _outcome(
                lambda messages=messages, tools=tools: ours.chat_template.render(
                    ChatPrompt(messages=messages, tools=tools)
                )
            )
            if isinstance(got, Exception) and str(got).endswith(_REFUSALS):
                continue
            request = {
                "conversation": [_theirs(message) for message in messages],
                "tools": [_their_tool(tool) for tool in tools] or None,
                "add_generation_prompt": True,
            }
            wanted = _outcome(
                lambda request=request: reference.apply_chat_template(**request, tokenize=False)
            )
            outcome.num_texts += 1
            what = f"chat of {[message.role for message in messages]}, {len(tools)} tools"
            if isinstance(wanted, Exception):
                num_errors += 1
                is_same = isinstance(got, Exception) and str(wanted) in str(got)
                outcome.expect(what, is_same and len(str(got).splitlines()) == 1, True)
            else:
                outcome.expect(what, str(got), wanted)
                token_ids = reference.apply_chat_template(**request).input_ids
                got_ids = ours.encode_rendered(wanted, "").tolist()
                outcome.expect(f"tokens of a {what}", got_ids, token_ids)
    return outcome, num_errors


def _outcome(function: Callable[[], object]) -> object:
    try:
        return function()
    except Exception as error:
        return error


def _theirs(message: ChatMessage) -> dict[str, object]:
    """A message as users of transformers write it."""
    calls = [
        {
            "type": "function",
            "id": call.call_id,
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    fields = {
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    content = message.content or None if calls else message.content
    return {
        "role": message.role,
        "content": content,
        **{name: value for name, value in fields.items() if value},
    }


def _their_tool(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
