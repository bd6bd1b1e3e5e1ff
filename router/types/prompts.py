"""What a client asks to continue: a text, a conversation or token IDs."""

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Text to tokenize as it is."""

    text: str
    add_special_tokens: bool = True
    """Adds what the tokenizer adds around a text."""
    field: str = "text"
    """What the client calls it, for errors."""


class ToolChoice(enum.Enum):
    """Whether a model calls functions."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: "Mapping[str, object] | None" = None
    """The JSON schema of its arguments; None means that it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call in an assistant's message."""

    call_id: str
    name: str
    arguments: "Mapping[str, object]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str
    parts: tuple[str, ...] = ()
    """The content in several parts, instead of `content`."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the message has a role and a text only."""
        return not (
            self.parts or self.tool_calls or self.tool_call_id or self.name or self.reasoning
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    function_name: str = ""
    """The one function that must be called, once; empty means any, as `tool_choice` says."""
    parallel_calls: bool = True
    """Whether an answer may have more than one call; if not, it ends with the first."""
    template_kwargs: "Mapping[str, object]" = field(default_factory=dict)
    """More variables for the template."""
    add_generation_prompt: bool | None = None
    """None means unless the final message is continued."""
    continue_final_message: bool = False
    raw_output: bool = False
    """Leaves reasoning and tool calls in the text of the answer."""
    num_json_bytes: int = 0
    """Size of all that was read from JSON."""

    @property
    def shown_tools(self) -> tuple[Tool, ...]:
        """The tools that the model gets to know."""
        return () if self.tool_choice is ToolChoice.NONE else self.tools

    @property
    def must_call(self) -> bool:
        """Whether the model has to call a function."""
        return bool(self.function_name) or self.tool_choice is ToolChoice.REQUIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token IDs as received, not yet checked."""

    token_ids: "array[int]"
    """Typecode "I"."""
    field: str = "token_ids"
    """What the client calls them, for errors."""


Prompt = TextPrompt | ChatPrompt | TokenPrompt
