"""The tools of a chat completion, and which of them the model may or must call."""

from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from router.http.chat.messages import bad
from router.http.json_texts import JsonTexts
from router.http.kinds import OBJECT, TEXT, text_or_object
from router.http.sampling import Fields, JsonObject
from router.types.prompts import Tool, ToolChoice


class FunctionFields(Fields):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    # A call that is asked for follows its schema in any case.
    strict: bool | None = None


class ToolFields(Fields):
    """A tool, of which only functions are served."""

    type: str
    function: FunctionFields | None = None
    custom: Any = None


class FunctionName(Fields):
    """A function, named."""

    name: str


class NamedTool(Fields):
    """A tool, named."""

    type: str
    function: FunctionName | None = None
    custom: Any = None


class AllowedTools(Fields):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ChoiceFields(Fields):
    """A tool choice that is more than a word."""

    type: Literal["function", "allowed_tools", "custom"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None
    custom: Any = None


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], pydantic.Tag(TEXT)]
    | Annotated[ChoiceFields, pydantic.Tag(OBJECT)],
    text_or_object,
]


class Choice(NamedTuple):
    """Which tools a chat has, and whether one is called."""

    tools: tuple[Tool, ...]
    mode: ToolChoice = ToolChoice.AUTO
    function_name: str = ""


def to_tools(tools: list[ToolFields], texts: JsonTexts) -> tuple[Tool, ...]:
    """Returns the tools as the router has them.

    Raises:
        InvalidRequest: One is no function, or its schema is too deep or too long.
    """
    return tuple(_tool(f"tools[{index}]", tool, texts) for index, tool in enumerate(tools))


def to_choice(choice: ToolChoiceField | None, tools: tuple[Tool, ...]) -> Choice:
    """Returns what a tool choice means. Tools that are not allowed are not shown to the model.

    Raises:
        InvalidRequest: It names something that is no function of the request.
    """
    if choice is None:
        return Choice(tools)
    if isinstance(choice, str):
        return Choice(tools, ToolChoice(choice))
    if choice.type == "custom":
        raise bad("tool_choice.type", choice.type, "function or allowed_tools")
    given = choice.function if choice.type == "function" else choice.allowed_tools
    if given is None:
        raise bad(f"tool_choice.{choice.type}", "null", "set, as tool_choice.type says")
    if isinstance(given, FunctionName):
        return Choice(tools, function_name=given.name)
    allowed = _allowed(given.tools, {tool.name for tool in tools})
    return Choice(
        tuple(tool for tool in tools if tool.name in allowed), mode=ToolChoice(given.mode)
    )


def _tool(field: str, tool: ToolFields, texts: JsonTexts) -> Tool:
    if tool.type != "function":
        raise bad(f"{field}.type", tool.type, "function; this server has no other tools")
    function = tool.function
    if function is None:
        raise bad(f"{field}.function", "null", "an object with a name")
    parameters = function.parameters
    if parameters is not None:
        parameters = texts.check(f"{field}.function.parameters", parameters)
    return Tool(name=function.name, description=function.description or "", parameters=parameters)


def _allowed(tools: list[NamedTool], known: set[str]) -> set[str]:
    field = "tool_choice.allowed_tools.tools"
    if not tools:
        raise bad(field, "[]", "one tool or more")
    names = set()
    for index, tool in enumerate(tools):
        if tool.type != "function" or tool.function is None:
            raise bad(f"{field}[{index}].type", tool.type, "function, with its name")
        if tool.function.name not in known:
            raise bad(f"{field}[{index}].function.name", tool.function.name, "one of tools")
        names.add(tool.function.name)
    return names
