"""All texts of a chat that a client chose: contents, tools, tool calls and variables."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from router.types.prompts import ChatMessage, ChatPrompt, Tool

Change = Callable[[str], str]


def chat_texts(chat: ChatPrompt) -> Iterator[str]:
    """Yields the contents one by one, and the small texts together."""
    small: list[str] = []
    for message in chat.messages:
        yield message.content
        if not message.is_plain:
            yield from message.parts
            yield message.reasoning
            small += (message.tool_call_id, message.name)
            for call in message.tool_calls:
                small += (call.call_id, call.name)
                small += _texts_of(call.arguments)
    for tool in chat.tools:
        small += (tool.name, tool.description)
        small += _texts_of(tool.parameters)
    small += _texts_of(chat.template_kwargs)
    if small:
        yield "\n".join(small)


def map_texts(chat: ChatPrompt, change: Change) -> ChatPrompt:
    """Returns a chat with each of its texts changed."""
    return replace(
        chat,
        messages=tuple(_map_message(message, change) for message in chat.messages),
        tools=tuple(_map_tool(tool, change) for tool in chat.tools),
        template_kwargs={
            name: _map_value(value, change) for name, value in chat.template_kwargs.items()
        },
    )


def _map_message(message: ChatMessage, change: Change) -> ChatMessage:
    if message.is_plain:
        return replace(message, content=change(message.content))
    return replace(
        message,
        content=change(message.content),
        parts=tuple(change(part) for part in message.parts),
        reasoning=change(message.reasoning),
        tool_call_id=change(message.tool_call_id),
        name=change(message.name),
        tool_calls=tuple(
            replace(
                call,
                call_id=change(call.call_id),
                name=change(call.name),
                arguments=_map_object(call.arguments, change),
            )
            for call in message.tool_calls
        ),
    )


def _map_tool(tool: Tool, change: Change) -> Tool:
    return replace(
        tool,
        name=change(tool.name),
        description=change(tool.description),
        parameters=None if tool.parameters is None else _map_object(tool.parameters, change),
    )


def _texts_of(value: object) -> Iterator[str]:
    """Yields the texts in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_of(inner)


def _map_object(value: Mapping[str, object], change: Change) -> dict[str, object]:
    return {change(key): _map_value(inner, change) for key, inner in value.items()}


def _map_value(value: object, change: Change) -> object:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return _map_object(value, change)
    if isinstance(value, list):
        return [_map_value(inner, change) for inner in value]
    return value
