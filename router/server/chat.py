"""The chats of the router's contract to its own types, and answers to them back."""

from collections.abc import Iterable, Sequence

from protos.pagestream.router.v1 import router_pb2
from protos.wire.limits import MAX_CHAT_JSON_BYTES
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.request.json_object import read_object
from router.types.generation import ToolCallDelta
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoice

_CHOICES = {
    router_pb2.TOOL_CHOICE_MODE_UNSPECIFIED: ToolChoice.AUTO,
    router_pb2.TOOL_CHOICE_MODE_NONE: ToolChoice.NONE,
    router_pb2.TOOL_CHOICE_MODE_AUTO: ToolChoice.AUTO,
    router_pb2.TOOL_CHOICE_MODE_REQUIRED: ToolChoice.REQUIRED,
}


def to_chat_prompt(chat: router_pb2.Chat) -> ChatPrompt:
    """Reads a chat, with all that it holds as JSON.

    Raises:
        InvalidRequest: Something in JSON is none, is too long or too deep, or the tool choice is
            unknown.
    """
    # Each reading of the list makes objects of its entries.
    messages = list(chat.messages)
    num_json_bytes = _num_json_bytes(chat, messages)
    if num_json_bytes > MAX_CHAT_JSON_BYTES:
        raise InvalidRequest(
            f"tools, tool_calls and chat_template_kwargs of chat have {num_json_bytes} bytes of "
            f"JSON, outside 0 to {MAX_CHAT_JSON_BYTES}",
            {
                "field": "chat",
                "value": f"{num_json_bytes} bytes",
                "bounds": f"0 to {MAX_CHAT_JSON_BYTES}",
            },
            reason=Reason.BAD_CHAT,
        )
    return ChatPrompt(
        messages=tuple(_to_message(index, one) for index, one in enumerate(messages)),
        tools=tuple(_to_tool(index, tool) for index, tool in enumerate(chat.tools)),
        tool_choice=_to_choice(chat.tool_choice),
        function_name=chat.tool_choice.function_name,
        template_kwargs=read_object("chat.chat_template_kwargs", chat.chat_template_kwargs),
        add_generation_prompt=(
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else None
        ),
        continue_final_message=chat.continue_final_message,
        raw_output=chat.raw_output,
        num_json_bytes=num_json_bytes,
    )


def to_tool_call_deltas(deltas: Iterable[ToolCallDelta]) -> list[router_pb2.ToolCallDelta]:
    """Writes parts of tool calls."""
    return [
        router_pb2.ToolCallDelta(
            index=delta.index, id=delta.call_id, name=delta.name, arguments=delta.arguments
        )
        for delta in deltas
    ]


def _num_json_bytes(chat: router_pb2.Chat, messages: Sequence[router_pb2.ChatMessage]) -> int:
    texts = [chat.chat_template_kwargs, *(tool.parameters for tool in chat.tools)]
    texts += [call.arguments for message in messages for call in message.tool_calls]
    return sum(len(text.encode()) for text in texts if text)


def _to_message(index: int, message: router_pb2.ChatMessage) -> ChatMessage:
    if not (
        message.parts
        or message.tool_calls
        or message.tool_call_id
        or message.name
        or message.reasoning
    ):
        return ChatMessage(role=message.role, content=message.content)
    return ChatMessage(
        role=message.role,
        content=message.content,
        parts=tuple(part.text for part in message.parts),
        tool_calls=tuple(
            ToolCall(
                call_id=call.id,
                name=call.name,
                arguments=read_object(
                    f"chat.messages[{index}].tool_calls[{number}].arguments", call.arguments
                ),
            )
            for number, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def _to_tool(index: int, tool: router_pb2.Tool) -> Tool:
    return Tool(
        name=tool.name,
        description=tool.description,
        parameters=(
            read_object(f"chat.tools[{index}].parameters", tool.parameters)
            if tool.parameters
            else None
        ),
    )


def _to_choice(choice: router_pb2.ToolChoice) -> ToolChoice:
    known = _CHOICES.get(choice.mode)
    if known is None:
        raise InvalidRequest(
            f"chat.tool_choice.mode is {choice.mode}, outside 0 to {max(_CHOICES)}",
            {
                "field": "chat.tool_choice.mode",
                "value": str(choice.mode),
                "bounds": f"0 to {max(_CHOICES)}",
            },
            reason=Reason.BAD_CHAT,
        )
    return known
