"""Which formats there are, and which of them a model uses."""

from collections.abc import Container
from dataclasses import dataclass

from router.text.parsers.reasoning_parser import ReasoningFormat
from router.text.parsers.tool_format import DEEPSEEK, HERMES, LLAMA3_JSON, MISTRAL, TOOL_FORMATS
from router.text.parsers.tool_format import ToolFormat as ToolFormat

AUTO, NONE = "auto", "none"
_THINK = ReasoningFormat(opening="<think>", closing="</think>")
_BRACKETS = ReasoningFormat(opening="[THINK]", closing="[/THINK]")
REASONING_FORMATS = {"think": _THINK, "mistral": _BRACKETS}
"""By name: Qwen3's and DeepSeek R1's; Mistral's."""
TOOL_CALL_PARSERS = (AUTO, *TOOL_FORMATS, NONE)
REASONING_PARSERS = (AUTO, *REASONING_FORMATS, NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormats:
    """How a model writes its reasoning and its tool calls; None means that it is not parsed."""

    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags that a parser has to see."""
        reasoning = self.reasoning
        tags = () if reasoning is None else (reasoning.opening, reasoning.closing)
        return tags if self.tools is None else (*tags, *self.tools.tags)


def find_formats(
    tool_call_parser: str, reasoning_parser: str, template: str, tokens: Container[str]
) -> ChatFormats:
    """Returns a model's formats.

    Args:
        tool_call_parser: One of `TOOL_CALL_PARSERS`.
        reasoning_parser: One of `REASONING_PARSERS`.
        template: The model's chat template, which decides if the name is "auto".
        tokens: The model's added tokens, which help to tell tool calls of Llama.
    """
    return ChatFormats(
        reasoning=(
            _reasoning_of(template)
            if reasoning_parser == AUTO
            else REASONING_FORMATS.get(reasoning_parser)
        ),
        tools=(
            _tools_of(template, tokens)
            if tool_call_parser == AUTO
            else TOOL_FORMATS.get(tool_call_parser)
        ),
    )


def _reasoning_of(template: str) -> ReasoningFormat | None:
    # Models that do not reason share the vocabulary of those that do.
    forms = REASONING_FORMATS.values()
    return next((form for form in forms if form.closing in template), None)


def _tools_of(template: str, tokens: Container[str]) -> ToolFormat | None:
    # Qwen3-Coder has the tag of hermes, but XML inside.
    if HERMES.opening in template and "<function=" not in template:
        return HERMES
    for form in (MISTRAL, DEEPSEEK):
        if form.opening in template:
            return form
    # Llama's templates ask for the format in words.
    if LLAMA3_JSON.opening in tokens and '"parameters"' in template and "ipython" in template:
        return LLAMA3_JSON
    return None
