"""The conversation of a request, as chat templates know conversations."""

from dataclasses import dataclass, field

from protos.wire.printable import shown
from router.http.anthropic.errors import bad
from router.http.anthropic.request import (
    AssistantBlock,
    PromptFields,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserBlock,
)
from router.http.json_texts import JsonTexts
from router.types.prompts import ChatMessage, ToolCall


@dataclass(slots=True)
class _Turn:
    """What becomes one message of a chat."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_id: str = ""
    name: str = ""

    def message(self) -> ChatMessage:
        is_one = len(self.texts) == 1
        return ChatMessage(
            role=self.role,
            content=self.texts[0] if is_one else "",
            parts=() if is_one else tuple(self.texts),
            tool_calls=tuple(self.calls),
            tool_call_id=self.call_id,
            name=self.name,
            reasoning="\n".join(self.thoughts),
        )


class Conversation:
    """Turns blocks into messages: successive ones of a role are one, results are one each."""

    def __init__(self, texts: JsonTexts) -> None:
        self._texts = texts
        self._turns: list[_Turn] = []
        self._functions: dict[str, str] = {}
        """Names of the called functions by the IDs of their calls."""

    def messages(self, fields: PromptFields) -> tuple[ChatMessage, ...]:
        """Returns the messages of a request.

        Raises:
            InvalidRequest: A result has no call, the input of a call cannot be read, or the last
                message is the assistant's and cannot be continued.
        """
        for text in fields.system or ():
            self._turn("system").texts.append(text.text)
        for index, message in enumerate(fields.messages):
            if not message.content:
                self._turn(message.role)
            for number, block in enumerate(message.content):
                self._add(f"messages[{index}].content[{number}]", message.role, block)
        self._check_last(f"messages[{len(fields.messages) - 1}]")
        return tuple(turn.message() for turn in self._turns)

    def _turn(self, role: str) -> _Turn:
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role))
        return self._turns[-1]

    def _add(self, name: str, role: str, block: UserBlock | AssistantBlock) -> None:
        match block:
            case TextBlock():
                self._turn(role).texts.append(block.text)
            case ThinkingBlock() if block.thinking:
                self._turn(role).thoughts.append(block.thinking)
            case ToolUseBlock():
                self._add_call(name, role, block)
            case ToolResultBlock():
                self._add_result(name, block)
            case _:
                # Thoughts that nobody here can read.
                self._turn(role)

    def _add_call(self, name: str, role: str, block: ToolUseBlock) -> None:
        self._functions[block.id] = block.name
        arguments = self._texts.check(f"{name}.input", block.input)
        call = ToolCall(call_id=block.id, name=block.name, arguments=arguments)
        self._turn(role).calls.append(call)

    def _add_result(self, name: str, block: ToolResultBlock) -> None:
        called = self._functions.get(block.tool_use_id)
        if called is None:
            call_id = shown(block.tool_use_id)
            text = f"is {call_id}, which is the ID of no tool_use before it"
            raise bad(f"{name}.tool_use_id", call_id, text)
        texts = [text.text for text in block.content or ()]
        if block.is_error:
            # Chat templates have no other way to say it.
            texts[:1] = [f"Error: {texts[0]}" if texts else "Error"]
        self._turns.append(_Turn("tool", texts, call_id=block.tool_use_id, name=called))

    def _check_last(self, name: str) -> None:
        last = self._turns[-1]
        if last.role != "assistant":
            return
        if last.calls:
            raise bad(name, "tool_use", "has a tool_use without a tool_result after it")
        if not any(last.texts):
            raise bad(name, "", "is the assistant's, which is continued, but it has no text")
