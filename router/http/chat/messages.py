"""The messages of a chat completion: their fields, and what the router makes of them."""

from functools import partial
from typing import Annotated, Any, Literal

import pydantic

from protos.wire.limits import (
    MAX_MESSAGE_PARTS,
)
from protos.wire.reason import Reason
from router.http.errors import must_be
from router.http.json_texts import JsonTexts
from router.http.kinds import LIST, TEXT, text_or_list
from router.http.sampling import Fields, JsonObject, bounded
from router.types.prompts import ChatMessage, ToolCall

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ContentPart(Fields):
    """A part of a content. Only text is served; the fields of other parts are known by name."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    video_url: Any = None
    audio_url: Any = None
    # Known, and of no effect here
    prompt_cache_breakpoint: JsonObject | None = None
    cache_control: JsonObject | None = None


Content = Annotated[
    Annotated[str, pydantic.Tag(TEXT)]
    | Annotated[list[ContentPart], bounded(MAX_MESSAGE_PARTS), pydantic.Tag(LIST)],
    text_or_list,
]


class CalledFunction(Fields):
    """A function that was called."""

    name: str
    arguments: str


class CalledTool(Fields):
    """A call in an assistant's message."""

    id: str = ""
    type: str = "function"
    function: CalledFunction | None = None
    custom: Any = None
    # As streamed answers have it; of no effect here
    index: int | None = None


class Message(Fields):
    """A message of any role, with all that answers have, so that they can be sent back."""

    role: Role
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[CalledTool], bounded(MAX_MESSAGE_PARTS)] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    audio: Any = None
    # Known, and of no effect here; lm-eval sends a type
    annotations: list[Any] | None = None
    type: Literal["text"] | None = None


_PLAIN = {"role", "content"}

bad = partial(must_be, reason=Reason.BAD_CHAT)
"""Returns the error for a field of a chat that cannot be served."""


def to_message(index: int, message: Message, texts: JsonTexts) -> ChatMessage:
    """Returns a message as the router has it.

    A function's message becomes that of a tool, and the call of a function that of a tool.

    Raises:
        InvalidRequest: Something in it cannot be served, which the error names.
    """
    if message.model_fields_set == _PLAIN and isinstance(message.content, str):
        return ChatMessage(role=_role(message), content=message.content)
    field = f"messages[{index}]"
    for name in ("refusal", "audio"):
        if value := getattr(message, name):
            raise bad(f"{field}.{name}", str(value), "null; send what was said as content")
    content, parts = _content(field, message)
    calls = [
        _call(f"{field}.tool_calls[{number}]", call, texts)
        for number, call in enumerate(message.tool_calls or ())
    ]
    if (called := message.function_call) is not None:
        arguments = texts.read(f"{field}.function_call.arguments", called.arguments)
        calls.append(ToolCall(call_id="", name=called.name, arguments=arguments))
    return ChatMessage(
        role=_role(message),
        content=content,
        parts=parts,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
        reasoning=_reasoning(field, message),
    )


def _role(message: Message) -> str:
    return "tool" if message.role == "function" else message.role


def _content(field: str, message: Message) -> tuple[str, tuple[str, ...]]:
    """Returns the content: whole or in parts."""
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise bad(f"{field}.content", "null", f"text in a message of the {message.role}")
        return "", ()
    if isinstance(content, str):
        return content, ()
    texts = tuple(_text(f"{field}.content[{i}]", part) for i, part in enumerate(content))
    return ("", texts) if len(texts) > 1 else ("".join(texts), ())


def _text(field: str, part: ContentPart) -> str:
    if part.type != "text":
        raise bad(f"{field}.type", part.type, "text; this server takes text only")
    if part.text is None:
        raise bad(f"{field}.text", "null", "the text of the part")
    return part.text


def _call(field: str, call: CalledTool, texts: JsonTexts) -> ToolCall:
    if call.type != "function":
        raise bad(f"{field}.type", call.type, "function")
    if call.function is None:
        raise bad(f"{field}.function", "null", "an object with name and arguments")
    arguments = texts.read(f"{field}.function.arguments", call.function.arguments)
    return ToolCall(call_id=call.id, name=call.function.name, arguments=arguments)


def _reasoning(field: str, message: Message) -> str:
    """Returns the reasoning, which answers have under two names."""
    reasoning, same = message.reasoning, message.reasoning_content
    if reasoning and same and reasoning != same:
        raise bad(f"{field}.reasoning_content", same, "equal to reasoning, or unset")
    return reasoning or same or ""
