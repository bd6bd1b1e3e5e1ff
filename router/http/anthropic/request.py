"""The bodies of requests to Anthropic's API."""

from typing import Annotated, Literal

import pydantic

from protos.wire.limits import (
    MAX_CHAT_MESSAGES,
    MAX_CHAT_TOOLS,
    MAX_LABEL_CHARACTERS,
    MAX_MESSAGE_PARTS,
    MAX_STOP_TEXTS,
)
from router.http.anthropic.unsupported import NO_EDITS, NOTHING
from router.http.kinds import by_type
from router.http.sampling import Fields, Int32, JsonObject
from router.request.chat_limits import FUNCTION_NAME

Unsupported = Annotated[None, NOTHING]
CallId = Annotated[str, pydantic.Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
FunctionName = Annotated[str, pydantic.Field(pattern=f"^{FUNCTION_NAME.pattern}$")]


class CacheControl(Fields):
    """Where a prompt may be kept; prompts are kept anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Fields):
    """A text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Unsupported = None


class ThinkingBlock(Fields):
    """What a model thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Fields):
    """What a model thought, as only its provider can read it."""

    type: Literal["redacted_thinking"]
    data: str


class Caller(Fields):
    """Who calls a tool."""

    type: Literal["direct"]


class ToolUseBlock(Fields):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: CallId
    name: FunctionName
    input: JsonObject
    cache_control: CacheControl | None = None
    caller: Caller | None = None
    toolset_name: Unsupported = None


def _as_blocks(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _or_text(blocks: object) -> pydantic.BeforeValidator:
    return pydantic.BeforeValidator(_as_blocks, json_schema_input_type=blocks)


_Texts = list[Annotated[TextBlock, by_type({"text": TextBlock})]]
Texts = Annotated[
    _Texts, pydantic.Field(max_length=MAX_MESSAGE_PARTS), _or_text(str | list[TextBlock])
]
"""A text, or several."""


class ToolResultBlock(Fields):
    """What a call has returned."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: Unsupported = None


UserBlock = TextBlock | ToolResultBlock
AssistantBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
_USER_BLOCKS = {"text": TextBlock, "tool_result": ToolResultBlock}
_ASSISTANT_BLOCKS = {
    "text": TextBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
}


class UserMessage(Fields):
    """A turn of the user."""

    role: Literal["user"]
    content: Annotated[
        list[Annotated[UserBlock, by_type(_USER_BLOCKS)]],
        pydantic.Field(max_length=MAX_MESSAGE_PARTS),
        _or_text(str | list[UserBlock]),
    ]


class AssistantMessage(Fields):
    """A turn of the model."""

    role: Literal["assistant"]
    content: Annotated[
        list[Annotated[AssistantBlock, by_type(_ASSISTANT_BLOCKS)]],
        pydantic.Field(max_length=MAX_MESSAGE_PARTS),
        _or_text(str | list[AssistantBlock]),
    ]


class SystemMessage(Fields):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: Texts


Message = UserMessage | AssistantMessage | SystemMessage
_MESSAGES = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}


class CustomTool(Fields):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: JsonObject
    input_examples: list[JsonObject] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None


class AutoChoice(Fields):
    """The model calls tools if it wants to."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Fields):
    """The model calls some tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoice(Fields):
    """The model calls this tool, once."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Fields):
    """The model calls no tool."""

    type: Literal["none"]


Choice = AutoChoice | AnyChoice | ToolChoice | NoChoice
_CHOICES = {"auto": AutoChoice, "any": AnyChoice, "tool": ToolChoice, "none": NoChoice}

Display = Literal["summarized", "omitted"]


class EnabledThinking(Fields):
    """The model thinks."""

    type: Literal["enabled"]
    budget_tokens: Annotated[Int32, pydantic.Field(ge=1)]
    display: Display | None = None
    block_binding: Unsupported = None


class AdaptiveThinking(Fields):
    """The model thinks as it likes."""

    type: Literal["adaptive"]
    display: Display | None = None
    block_binding: Unsupported = None


class DisabledThinking(Fields):
    """The model does not think."""

    type: Literal["disabled"]


Thinking = EnabledThinking | AdaptiveThinking | DisabledThinking
_THINKING = {
    "enabled": EnabledThinking,
    "adaptive": AdaptiveThinking,
    "disabled": DisabledThinking,
}


class OutputFormat(Fields):
    """What the text of the answer must match."""

    type: Literal["json_schema"]
    schema_: JsonObject = pydantic.Field(alias="schema")


class OutputConfig(Fields):
    """What the answer must be like."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    task_budget: Unsupported = None


class Metadata(Fields):
    """Whom the request is for."""

    user_id: str | None = None


class PromptFields(Fields):
    """What tokens are counted of."""

    model: Annotated[str, pydantic.Field(min_length=1)]
    messages: Annotated[
        list[Annotated[Message, by_type(_MESSAGES, key="role")]],
        pydantic.Field(min_length=1, max_length=MAX_CHAT_MESSAGES),
    ]
    system: Texts | None = None
    tools: (
        Annotated[
            list[Annotated[CustomTool, by_type({"custom": CustomTool}, default="custom")]],
            pydantic.Field(max_length=MAX_CHAT_TOOLS),
        ]
        | None
    ) = None
    tool_choice: Annotated[Choice, by_type(_CHOICES)] | None = None
    thinking: Annotated[Thinking, by_type(_THINKING)] | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    # Known, and of no effect here
    cache_control: CacheControl | None = None
    speed: Literal["standard", "fast"] | None = None
    # Refused
    billing_policy: Unsupported = None
    compaction: Unsupported = None
    context_management: Annotated[None, NO_EDITS] = None
    mcp_servers: Unsupported = None


class MessagesRequest(PromptFields):
    """What is asked of a model. Bounds of numbers are those of `SamplingParams`."""

    max_tokens: Annotated[Int32, pydantic.Field(ge=1)]
    stop_sequences: (
        Annotated[
            list[Annotated[str, pydantic.Field(min_length=1)]],
            pydantic.Field(max_length=MAX_STOP_TEXTS),
        ]
        | None
    ) = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    # Known, and of no effect here
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # Refused
    container: Unsupported = None
    diagnostics: Unsupported = None
    fallback_credit_token: Unsupported = None
    fallbacks: Unsupported = None
    inference_geo: Unsupported = None
    thread: Unsupported = None
