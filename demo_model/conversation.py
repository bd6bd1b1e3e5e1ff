"""Conversations: what a task makes, what training and evaluation read."""

from dataclasses import dataclass

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: What is said.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its one right answer.

    Attributes:
        question: What the user says, or what a tool returned.
        answer: All that the model has to say, to the letter.
        role: Who asks: "user" or "tool".
    """

    question: str
    answer: str
    role: str = "user"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One task's exchanges, of which the last is the one that it is about.

    Attributes:
        exchanges: In order, at least one.
        system: What the system prompt must say, if anything.
        may_be_interrupted: Whether other exchanges may come right before the last one.
        stands_alone: Whether its system prompt allows no exchange of another task.
    """

    exchanges: tuple[Exchange, ...]
    system: str = ""
    may_be_interrupted: bool = False
    stands_alone: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation; it ends with the model's answer.

    Attributes:
        task: Name of the task that its last exchange belongs to.
        messages: In order.
    """

    task: str
    messages: tuple[Message, ...]

    @property
    def question(self) -> tuple[Message, ...]:
        """All but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1].content


def render(messages: tuple[Message, ...]) -> str:
    """Lays out messages as the chat template does, without a prompt to go on."""
    return "".join(_render(message) for message in messages)


def _render(message: Message) -> str:
    if message.role == "tool":
        content = f"<tool_response>\n{message.content}\n</tool_response>"
        return f"{TURN_START}user\n{content}{TURN_END}\n"
    return f"{TURN_START}{message.role}\n{message.content}{TURN_END}\n"
