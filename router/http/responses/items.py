"""The items of a conversation in the Responses API, and the messages that they make."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pydantic

from protos.wire.limits import MAX_LABEL_CHARACTERS
from protos.wire.printable import shown
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.json_texts import JsonTexts
from router.http.kinds import LIST, TEXT, by_type, refused, text_or_list
from router.http.sampling import Fields, JsonObject
from router.request.chat_limits import FUNCTION_NAME
from router.types.prompts import ChatMessage, ToolCall

Label = Annotated[str, pydantic.Field(max_length=MAX_LABEL_CHARACTERS)]
Name = Annotated[str, pydantic.Field(pattern=f"^{FUNCTION_NAME.pattern}$")]
Status = Literal["in_progress", "completed", "incomplete"]

_NO_REFERENCE = "it refers to a stored item, and nothing is stored; send the item itself"
_NO_NAMESPACE = refused("functions have no namespaces here")


class InputText(Fields):
    """A part of what a user, or a function, said."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: JsonObject | None = None


class OutputText(Fields):
    """A part of what an assistant said."""

    type: Literal["output_text"]
    text: str
    annotations: list[JsonObject] | None = None
    logprobs: list[JsonObject] | None = None


class OutputRefusal(Fields):
    """A part of what an assistant said, as other servers mark it."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What was said."""
        return self.refusal


Part = Annotated[
    InputText | OutputText | OutputRefusal,
    by_type(
        {"input_text": InputText, "output_text": OutputText, "refusal": OutputRefusal},
        why="the models here read text only",
    ),
]
Content = Annotated[
    Annotated[str, pydantic.Tag(TEXT)] | Annotated[list[Part], pydantic.Tag(LIST)], text_or_list
]


class Message(Fields):
    """A message, also one that the API has answered earlier."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class Caller(Fields):
    """Who has called a function."""

    type: Literal["direct"]


class FunctionCall(Fields):
    """A call of a function by the model."""

    type: Literal["function_call"]
    call_id: Label
    name: Name
    arguments: str
    id: str | None = None
    status: Status | None = None
    caller: Caller | None = None
    namespace: Annotated[None, _NO_NAMESPACE] = None
    async_: Annotated[
        Literal[False] | None, refused("functions are not called in the background", False)
    ] = pydantic.Field(default=None, alias="async")


class FunctionCallOutput(Fields):
    """What a function has returned."""

    type: Literal["function_call_output"]
    call_id: Label
    output: Content
    id: str | None = None
    status: Status | None = None
    name: Label | None = None
    caller: Caller | None = None
    namespace: Annotated[None, _NO_NAMESPACE] = None


class SummaryText(Fields):
    """A part of a summary of a reasoning."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(Fields):
    """A part of a reasoning."""

    type: Literal["reasoning_text"]
    text: str


class Reasoning(Fields):
    """What the model thought before it said or did what the next items hold."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


Item = Annotated[
    Message | FunctionCall | FunctionCallOutput | Reasoning,
    by_type(
        {
            "message": Message,
            "function_call": FunctionCall,
            "function_call_output": FunctionCallOutput,
            "reasoning": Reasoning,
            "item_reference": _NO_REFERENCE,
        },
        default="message",
        why="the tools and services of other items are not here",
    ),
]
Input = Annotated[
    Annotated[str, pydantic.Tag(TEXT)] | Annotated[list[Item], pydantic.Tag(LIST)], text_or_list
]


def to_messages(
    instructions: str | None, items: Input, texts: JsonTexts
) -> tuple[ChatMessage, ...]:
    """Returns the messages of a conversation.

    Developers speak as the system does, as few chat templates know them, and what is said at the
    beginning is one message, as many take one only. What an assistant thought, said and called
    between two other messages is one message, too; a thought that nothing follows is left out.

    Raises:
        InvalidRequest: Arguments are no JSON, or a reasoning cannot be read.
    """
    conversation = _Conversation(texts)
    if instructions:
        conversation.say("system", (instructions,))
    if isinstance(items, str):
        conversation.say("user", (items,))
    else:
        for index, item in enumerate(items):
            conversation.add(f"input[{index}]", item)
    conversation.end_turn()
    return tuple(conversation.messages)


@dataclass(slots=True)
class _Turn:
    """What an assistant thought, said and called."""

    thoughts: list[str] = field(default_factory=list)
    texts: Sequence[str] = ()
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def has_begun(self) -> bool:
        """Whether there is more than thoughts."""
        return bool(self.texts or self.calls)


class _Conversation:
    def __init__(self, texts: JsonTexts) -> None:
        self._texts = texts
        self.messages: list[ChatMessage] = []
        self._turn = _Turn()

    def add(self, path: str, item: Item) -> None:
        match item:
            case Message(role="assistant"):
                self._end_unless_thinking()
                self._turn.texts = _texts(item.content)
            case Message():
                self.say(item.role, _texts(item.content))
            case Reasoning():
                self._end_unless_thinking()
                self._turn.thoughts += _thoughts(path, item)
            case FunctionCall():
                arguments = self._texts.read(f"{path}.arguments", item.arguments)
                call = ToolCall(call_id=item.call_id, name=item.name, arguments=arguments)
                self._turn.calls.append(call)
            case FunctionCallOutput():
                self.end_turn()
                content, parts = _content(_texts(item.output))
                self.messages.append(
                    ChatMessage(
                        role="tool",
                        content=content,
                        parts=parts,
                        tool_call_id=item.call_id,
                        name=item.name or "",
                    )
                )

    def say(self, role: str, texts: Sequence[str]) -> None:
        """Adds what a user or the system says."""
        self.end_turn()
        if role == "user":
            content, parts = _content(texts)
            self.messages.append(ChatMessage(role=role, content=content, parts=parts))
            return
        if len(self.messages) == 1 and self.messages[0].role == "system":
            texts = (self.messages.pop().content, *texts)
        self.messages.append(ChatMessage(role="system", content="\n\n".join(texts)))

    def end_turn(self) -> None:
        """Adds what the assistant has thought, said and called, if it has done more than think."""
        turn, self._turn = self._turn, _Turn()
        if turn.has_begun:
            content, parts = _content(turn.texts)
            self.messages.append(
                ChatMessage(
                    role="assistant",
                    content=content,
                    parts=parts,
                    tool_calls=tuple(turn.calls),
                    reasoning="\n".join(turn.thoughts),
                )
            )

    def _end_unless_thinking(self) -> None:
        if self._turn.has_begun:
            self.end_turn()


def _texts(content: Content) -> Sequence[str]:
    if isinstance(content, str):
        return (content,)
    return [part.text for part in content]


def _content(texts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Returns what becomes `content`, and what `parts`, of a message."""
    return ("", tuple(texts)) if len(texts) > 1 else ("".join(texts), ())


def _thoughts(path: str, item: Reasoning) -> list[str]:
    texts = [part.text for part in item.content or item.summary or ()]
    if item.encrypted_content and not texts:
        raise InvalidRequest(
            f"{path}.encrypted_content is {shown(item.encrypted_content)}, which only the server "
            "that has encrypted it can read; leave out this item",
            {"field": f"{path}.encrypted_content", "value": shown(item.encrypted_content)},
            reason=Reason.BAD_CHAT,
        )
    return texts
