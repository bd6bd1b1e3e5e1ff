"""The prompt that a request stands for."""

from protos.wire.printable import shown
from router.http.anthropic.conversation import Conversation
from router.http.anthropic.errors import bad
from router.http.anthropic.request import CustomTool, PromptFields
from router.http.json_texts import JsonTexts
from router.types.prompts import ChatPrompt, Tool, ToolChoice

_CHOICES = {"auto": ToolChoice.AUTO, "any": ToolChoice.REQUIRED, "none": ToolChoice.NONE}


def to_chat_prompt(fields: PromptFields) -> ChatPrompt:
    """Returns the conversation of a request with its tools.

    Raises:
        InvalidRequest: Something contradicts something else, or is out of bounds; the error names
            the field.
    """
    texts = JsonTexts()
    messages = Conversation(texts).messages(fields)
    continues = messages[-1].role == "assistant"
    tools = tuple(
        _tool(f"tools[{index}]", tool, texts) for index, tool in enumerate(fields.tools or ())
    )
    choice, function_name = _choice(fields)
    chat = ChatPrompt(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        function_name=function_name,
        parallel_calls=_has_parallel_calls(fields),
        template_kwargs=_variables(fields),
        continue_final_message=continues,
        num_json_bytes=texts.num_bytes,
    )
    _check(fields, chat)
    return chat


def _tool(name: str, tool: CustomTool, texts: JsonTexts) -> Tool:
    schema = tool.input_schema
    if tool.input_examples:
        schema = {**schema, "examples": tool.input_examples}
    return Tool(
        name=tool.name,
        description=tool.description or "",
        parameters=texts.check(f"{name}.input_schema", schema),
    )


def _choice(fields: PromptFields) -> tuple[ToolChoice, str]:
    choice = fields.tool_choice
    if choice is None:
        return ToolChoice.AUTO, ""
    if choice.type != "tool":
        return _CHOICES[choice.type], ""
    if all(tool.name != choice.name for tool in fields.tools or ()):
        raise bad("tool_choice.name", choice.name, f"is {shown(choice.name)}, which no tool has")
    return ToolChoice.AUTO, choice.name


def _has_parallel_calls(fields: PromptFields) -> bool:
    choice = fields.tool_choice
    return choice is None or choice.type == "none" or not choice.disable_parallel_tool_use


def _variables(fields: PromptFields) -> dict[str, object]:
    if fields.thinking is None:
        return {}
    return {"enable_thinking": fields.thinking.type != "disabled"}


def _check(fields: PromptFields, chat: ChatPrompt) -> None:
    if chat.must_call:
        assert fields.tool_choice is not None, "nothing else makes a model call"
        kind = fields.tool_choice.type
        if not chat.tools:
            raise bad("tool_choice.type", kind, f"is {kind}, but there are no tools")
        if chat.continue_final_message:
            last = f"messages[{len(fields.messages) - 1}]"
            text = f"is the assistant's, which is continued, but tool_choice.type is {kind}"
            raise bad(last, "assistant", text)
        return
    for index, tool in enumerate(fields.tools or ()):
        if tool.strict:
            text = "is true, which only a tool_choice of type any or tool guarantees"
            raise bad(f"tools[{index}].strict", "true", text)
