"""The functions that a model may call, as the Responses API describes them."""

from typing import Annotated, Literal

import pydantic

from protos.wire.reason import Reason
from router.http.errors import must_be
from router.http.json_texts import JsonTexts
from router.http.kinds import OBJECT, TEXT, by_type, refused, text_or_object
from router.http.sampling import Fields, JsonObject
from router.types.prompts import Tool, ToolChoice


class FunctionTool(Fields):
    """A function."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    output_schema: JsonObject | None = None
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    defer_loading: Annotated[
        Literal[False] | None, refused("there is no search of tools here; send it as false", False)
    ] = None
    async_: Annotated[
        Literal[False] | None, refused("functions are not called in the background", False)
    ] = pydantic.Field(default=None, alias="async")


class ChosenFunction(Fields):
    """The one function that must be called, or one of those that may be."""

    type: Literal["function"]
    name: str


class AllowedTools(Fields):
    """The functions that may be called, of those that are described."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenFunction] = pydantic.Field(min_length=1)


FunctionTools = list[
    Annotated[
        FunctionTool,
        by_type({"function": FunctionTool}, why="the other tools are OpenAI's own and not here"),
    ]
]
Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], pydantic.Tag(TEXT)]
    | Annotated[
        ChosenFunction | AllowedTools,
        by_type(
            {"function": ChosenFunction, "allowed_tools": AllowedTools},
            why="other tools are not here",
        ),
        pydantic.Tag(OBJECT),
    ],
    text_or_object,
]


def to_tools(tools: FunctionTools, choice: Choice | None, texts: JsonTexts) -> tuple[Tool, ...]:
    """Returns the functions that may be called.

    Raises:
        InvalidRequest: Parameters are too deep or have numbers that are none, or the choice names
            a function that is not described.
    """
    found = tuple(_to_tool(f"tools[{index}]", tool, texts) for index, tool in enumerate(tools))
    if not isinstance(choice, AllowedTools):
        return found
    names = {tool.name for tool in found}
    allowed = [tool.name for tool in choice.tools]
    for index, name in enumerate(allowed):
        if name not in names:
            rule = "the name of one of tools"
            raise must_be(f"tool_choice.tools[{index}].name", name, rule, Reason.BAD_CHAT)
    return tuple(tool for tool in found if tool.name in allowed)


def to_choice(choice: Choice | None) -> tuple[ToolChoice, str]:
    """Returns whether the model calls functions, and the one that it must call, if any."""
    match choice:
        case None:
            return ToolChoice.AUTO, ""
        case str():
            return ToolChoice(choice), ""
        case ChosenFunction():
            return ToolChoice.AUTO, choice.name
        case AllowedTools():
            return ToolChoice(choice.mode), ""


def _to_tool(path: str, tool: FunctionTool, texts: JsonTexts) -> Tool:
    if tool.output_schema is not None:
        texts.check(f"{path}.output_schema", tool.output_schema)
    parameters = None
    if tool.parameters is not None:
        parameters = texts.check(f"{path}.parameters", tool.parameters)
    return Tool(name=tool.name, description=tool.description or "", parameters=parameters)
