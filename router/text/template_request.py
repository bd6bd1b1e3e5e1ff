"""A chat as the template's worker gets it, in the names and forms of transformers."""

import json

from router.text import template_worker
from router.types.prompts import ChatMessage, ChatPrompt, Tool


def template_request(chat: ChatPrompt, *, knows_developers: bool) -> tuple[bytes, bytes]:
    """Returns head and body of a request to the worker.

    Args:
        chat: The chat.
        knows_developers: Whether the template knows the role "developer"; if not, it gets their
            messages as the system's, since most templates leave out messages of unknown roles.
    """
    contents: list[bytes] = []
    messages: list[tuple[str, int | None, dict[str, object]]] = []
    for message in chat.messages:
        is_system = message.role == "developer" and not knows_developers
        role = "system" if is_system else message.role
        fields = {} if message.is_plain else _fields(message)
        if message.tool_calls and not message.content and not message.parts:
            messages.append((role, None, fields))
            continue
        content = message.content.encode(errors=template_worker.ENCODING_ERRORS)
        contents.append(content)
        messages.append((role, len(content), fields))
    generates = chat.add_generation_prompt
    head = template_worker.Chat(
        messages=messages,
        tools=[_tool(tool) for tool in chat.shown_tools] or None,
        variables=chat.template_kwargs,
        add_generation_prompt=not chat.continue_final_message if generates is None else generates,
        continue_final_message=chat.continue_final_message,
    )
    return json.dumps(head).encode(), b"".join(contents)


def _fields(message: ChatMessage) -> dict[str, object]:
    """Returns what a message has beside role and content, as transformers names it."""
    fields: dict[str, object] = {}
    if message.parts:
        fields["parts"] = message.parts
    if message.reasoning:
        fields["thinking"] = fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "type": "function",
                "id": call.call_id,
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.name:
        fields["name"] = message.name
    return fields


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name, "description": tool.description}
    # Templates expect a schema.
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}
