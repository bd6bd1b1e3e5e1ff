"""What the answer to one chat will look like: whether it reasons first, and may call tools."""

from dataclasses import dataclass

from router.text.parsers.chat_parser import ChatParser
from router.text.parsers.reasoning_parser import ReasoningFormat, ReasoningParser
from router.text.parsers.registry import ChatFormats
from router.text.parsers.tag_search import LAYOUT
from router.text.parsers.tool_call_parser import ToolCallParser
from router.text.parsers.tool_format import ToolFormat
from router.types.prompts import ChatPrompt

_MAX_TAIL = 256
"""Characters at the end of a prompt that are searched for a tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What to expect of an answer.

    Attributes:
        reasoning: The format of the reasoning; None if the model does not reason, or has already.
        is_open: The prompt has begun the reasoning.
        tools: The format of tool calls; None if the model may not call.
        names: The functions that it may call.
        has_one_call: The answer ends with its first call.
        is_raw: The answer is not parsed.
        goes_on: The answer goes on within the last message.
    """

    reasoning: ReasoningFormat | None = None
    is_open: bool = False
    tools: ToolFormat | None = None
    names: frozenset[str] = frozenset()
    has_one_call: bool = False
    is_raw: bool = False
    goes_on: bool = False

    def parser(self) -> ChatParser | None:
        """Returns a parser for one answer, or None if there is nothing to parse."""
        if self.is_raw or (self.reasoning is None and self.tools is None):
            return None
        return ChatParser(
            ReasoningParser(self.reasoning, is_open=self.is_open) if self.reasoning else None,
            ToolCallParser(self.tools, self.names) if self.tools else None,
        )


def answer_form(formats: ChatFormats, chat: ChatPrompt, prompt: str) -> AnswerForm:
    """Returns what to expect.

    Args:
        formats: The model's formats.
        chat: The chat.
        prompt: What the chat template made of it.
    """
    reasoning, is_open = formats.reasoning, False
    if reasoning is not None:
        tail = prompt[-_MAX_TAIL:].rstrip(LAYOUT)
        is_open = tail.endswith(reasoning.opening)
        # In a final message that is continued, the reasoning is over unless its content begins it.
        if chat.continue_final_message and not is_open:
            content = chat.messages[-1].content or "".join(chat.messages[-1].parts)
            is_open = content.rfind(reasoning.opening) > content.rfind(reasoning.closing)
            reasoning = reasoning if is_open else None
        elif tail.endswith(reasoning.closing):
            reasoning = None
    tools = chat.shown_tools
    return AnswerForm(
        reasoning=reasoning,
        is_open=is_open,
        tools=formats.tools if tools else None,
        names=frozenset(tool.name for tool in tools),
        has_one_call=not chat.parallel_calls,
        is_raw=chat.raw_output,
        goes_on=chat.continue_final_message,
    )
