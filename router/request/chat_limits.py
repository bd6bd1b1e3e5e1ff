"""Checks a chat before any work is done for it."""

import re
from collections.abc import Mapping, Sequence

from protos.wire.limits import (
    MAX_CHAT_MESSAGES,
    MAX_CHAT_PARTS,
    MAX_CHAT_TOOLS,
    MAX_FUNCTION_NAME_CHARACTERS,
    MAX_LABEL_CHARACTERS,
    MAX_MESSAGE_PARTS,
)
from protos.wire.printable import shown
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from router.errors import InvalidRequest
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolChoice

ROLES = ("system", "developer", "user", "assistant", "tool")
RESERVED_VARIABLES = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tool_choice",
        "tokenize",
        "raise_exception",
        "strftime_now",
    }
)
"""Names that the variables of a chat cannot have. The template's worker knows further ones."""

FUNCTION_NAME = re.compile(rf"[A-Za-z0-9_.:/\-]{{1,{MAX_FUNCTION_NAME_CHARACTERS}}}")
_FUNCTION_NAME_RULE = (
    f'1 to {MAX_FUNCTION_NAME_CHARACTERS} letters, digits, "_", ".", ":", "/" and "-"'
)
_MAX_VARIABLES = 64


def check_chat(chat: ChatPrompt) -> None:
    """Refuses a chat that contradicts itself or exceeds a bound; its size is checked elsewhere.

    Raises:
        InvalidRequest: BAD_CHAT; message and metadata give field, value and bound.
    """
    _check_count("chat.messages", len(chat.messages), MAX_CHAT_MESSAGES, least=1)
    num_parts = num_calls = 0
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            roles = ", ".join(ROLES)
            raise _bad(f"chat.messages[{index}].role", message.role, f"one of {roles}")
        if not message.is_plain:
            _check_message(f"chat.messages[{index}]", message)
            num_parts += len(message.parts)
            num_calls += len(message.tool_calls)
    _check_count("chat.messages", num_parts, MAX_CHAT_PARTS, unit="parts in all")
    _check_count("chat.messages", num_calls, MAX_CHAT_PARTS, unit="tool calls in all")
    _check_tools(chat.tools)
    _check_choice(chat)
    _check_variables(chat.template_kwargs)
    if chat.continue_final_message:
        _check_continuation(chat)


def check_grammar(chat: ChatPrompt, params: SamplingParams) -> None:
    """Refuses a grammar beside a tool choice that needs one of its own.

    Raises:
        InvalidRequest: BAD_SAMPLING_PARAMS.
    """
    if chat.must_call and params.grammar is not None:
        wanted = chat.function_name or chat.tool_choice.value
        raise InvalidRequest(
            f"grammar is set, but chat.tool_choice is {shown(wanted)}, which is a grammar of its "
            "own; leave out one of them",
            {"field": "grammar", "value": params.grammar.form, "bounds": "unset"},
            reason=Reason.BAD_SAMPLING_PARAMS,
        )


def text_bytes(chat: ChatPrompt) -> int:
    """Returns the UTF-8 bytes of all texts of a chat together."""
    num_bytes = chat.num_json_bytes + sum(len(tool.description.encode()) for tool in chat.tools)
    for message in chat.messages:
        num_bytes += len(message.content.encode())
        if not message.is_plain:
            texts = (*message.parts, message.reasoning, message.name, message.tool_call_id)
            num_bytes += sum(len(text.encode()) for text in texts)
            num_bytes += sum(len(call.call_id) + len(call.name) for call in message.tool_calls)
    return num_bytes + sum(len(tool.name) for tool in chat.tools)


def _check_message(field: str, message: ChatMessage) -> None:
    if message.content and message.parts:
        raise _bad(f"{field}.parts", f"{len(message.parts)} parts", "unset, as content is set")
    _check_count(f"{field}.parts", len(message.parts), MAX_MESSAGE_PARTS)
    for name, value, role in (
        (
            "tool_calls",
            f"{len(message.tool_calls)} calls" if message.tool_calls else "",
            "assistant",
        ),
        ("reasoning", message.reasoning, "assistant"),
        ("tool_call_id", message.tool_call_id, "tool"),
    ):
        if value and message.role != role:
            raise _bad(f"{field}.{name}", value, f"unset in a message of the {message.role}")
    for name, label in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        _check_label(f"{field}.{name}", label)
    _check_count(f"{field}.tool_calls", len(message.tool_calls), MAX_MESSAGE_PARTS)
    for index, call in enumerate(message.tool_calls):
        _check_label(f"{field}.tool_calls[{index}].id", call.call_id)
        _check_name(f"{field}.tool_calls[{index}].name", call.name)


def _check_tools(tools: Sequence[Tool]) -> None:
    _check_count("chat.tools", len(tools), MAX_CHAT_TOOLS)
    names: set[str] = set()
    for index, tool in enumerate(tools):
        field = f"chat.tools[{index}]"
        _check_name(f"{field}.name", tool.name)
        if tool.name in names:
            raise _bad(f"{field}.name", tool.name, "a name that no other tool has")
        names.add(tool.name)
        if tool.parameters is not None:
            kind = tool.parameters.get("type", "object")
            if kind != "object":
                raise _bad(f"{field}.parameters.type", str(kind), '"object" or unset')


def _check_choice(chat: ChatPrompt) -> None:
    if chat.must_call and not chat.tools:
        wanted = chat.function_name or chat.tool_choice.value
        raise _bad("chat.tool_choice", wanted, "unset, none or auto, as chat.tools is empty")
    if chat.function_name and all(tool.name != chat.function_name for tool in chat.tools):
        names = ", ".join(tool.name for tool in chat.tools[:16])
        raise _bad(
            "chat.tool_choice.function_name", chat.function_name, f"one of {shown(names, 200)}"
        )


def _check_variables(variables: Mapping[str, object]) -> None:
    _check_count("chat.chat_template_kwargs", len(variables), _MAX_VARIABLES)
    for name in variables:
        if not (name.isascii() and name.isidentifier()) or name.startswith("_"):
            raise _bad("chat.chat_template_kwargs", name, "a name of a variable")
        if name in RESERVED_VARIABLES:
            raise _bad("chat.chat_template_kwargs", name, "a name that is not taken")


def _check_continuation(chat: ChatPrompt) -> None:
    field = "chat.continue_final_message"
    final = chat.messages[-1]
    if chat.add_generation_prompt:
        raise _bad(field, "true", "false, as add_generation_prompt is true")
    if chat.must_call:
        wanted = chat.function_name or ToolChoice.REQUIRED.value
        raise _bad(field, "true", f"false, as tool_choice is {shown(wanted)}")
    if final.role != "assistant" or final.tool_calls or not (final.content or final.parts):
        raise _bad(
            field, "true", "false, as the last message is not an assistant's with a content only"
        )


def _check_count(
    field: str, count: int, most: int, *, least: int = 0, unit: str = "entries"
) -> None:
    if not least <= count <= most:
        raise InvalidRequest(
            f"{field} has {count} {unit}, outside {least} to {most}",
            {"field": field, "value": str(count), "bounds": f"{least} to {most}"},
            reason=Reason.BAD_CHAT,
        )


def _check_label(field: str, label: str) -> None:
    if len(label) > MAX_LABEL_CHARACTERS:
        bounds = f"0 to {MAX_LABEL_CHARACTERS}"
        raise InvalidRequest(
            f"{field} has {len(label)} characters, outside {bounds}",
            {"field": field, "value": str(len(label)), "bounds": bounds},
            reason=Reason.BAD_CHAT,
        )


def _check_name(field: str, name: str) -> None:
    if not FUNCTION_NAME.fullmatch(name):
        raise _bad(field, name, _FUNCTION_NAME_RULE)


def _bad(field: str, value: str, bounds: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is '{shown(value)}'; it must be {bounds}",
        {"field": field, "value": shown(value), "bounds": bounds},
        reason=Reason.BAD_CHAT,
    )
