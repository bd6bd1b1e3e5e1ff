"""The items of an answer: reasoning, messages and calls of functions, in their order."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from router.http.responses.logprobs import Entry, TextLogprobs
from router.types.generation import GenerationDelta, ToolCallDelta

JsonObject = dict[str, Any]


class Item(ABC):
    """One item.

    Attributes:
        prefix: Of the names of such items.
        text_name: What the text in it is called.
        item_id: Its name.
        index: Its place in the answer, from 0.
        status: "in_progress", "completed" or "incomplete".
        logprobs: Of the tokens of its text, if they are asked for and it is a message.
    """

    prefix: ClassVar[str]
    text_name: ClassVar[str]

    def __init__(self, response_id: str, index: int) -> None:
        """Has no text yet."""
        self.item_id = f"{self.prefix}_{response_id}_{index}"
        self.index = index
        self.status = "in_progress"
        self.logprobs: list[Entry] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """What has come of it."""
        return "".join(self._pieces)

    def append(self, text: str) -> None:
        """Adds text."""
        self._pieces.append(text)

    def blank(self) -> JsonObject:
        """Returns the item as the API has it when it begins, whatever has come of it since."""
        return self._entry("in_progress", "")

    def entry(self) -> JsonObject:
        """Returns the item as the API has it when it has ended."""
        return self._entry(self.status, self.text)

    def part(self, text: str) -> JsonObject | None:
        """Returns its content, which is one part, with a text; None if its text is no content."""
        return None

    @abstractmethod
    def _entry(self, status: str, text: str) -> JsonObject:
        """Returns the item with a text."""

    def _content(self, status: str, text: str) -> list[JsonObject | None]:
        return [] if status == "in_progress" else [self.part(text)]


class ReasoningItem(Item):
    """What the model thinks."""

    prefix, text_name = "rs", "reasoning_text"

    def part(self, text: str) -> JsonObject:  # noqa: D102
        return {"type": "reasoning_text", "text": text}

    def _entry(self, status: str, text: str) -> JsonObject:
        return {
            "type": "reasoning",
            "id": self.item_id,
            "summary": [],
            "content": self._content(status, text),
            "encrypted_content": None,
            "status": status,
        }


class MessageItem(Item):
    """What the model says."""

    prefix, text_name = "msg", "output_text"

    def part(self, text: str) -> JsonObject:  # noqa: D102
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": self.logprobs if text else [],
        }

    def _entry(self, status: str, text: str) -> JsonObject:
        return {
            "type": "message",
            "id": self.item_id,
            "role": "assistant",
            "content": self._content(status, text),
            "status": status,
        }


class CallItem(Item):
    """A call of a function.

    Attributes:
        call_id: What the function's output refers to.
        name: The function.
    """

    prefix, text_name = "fc", "function_call_arguments"
    call_id: str
    name: str

    def _entry(self, status: str, text: str) -> JsonObject:
        return {
            "type": "function_call",
            "id": self.item_id,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": text,
            "status": status,
        }


class Step(Enum):
    """What happens to an item."""

    BEGIN = "begin"
    TEXT = "text"
    END = "end"


class Change(NamedTuple):
    """What happens to one item, with the text that is new and the logprobs of that."""

    step: Step
    item: Item
    text: str = ""
    logprobs: list[Entry] | None = None


class Output:
    """Sorts what is generated into items, one after the other.

    Attributes:
        items: All items that have begun; at most the last is in progress.
        num_reasoning_tokens: Tokens up to the last one that has added to a reasoning.
    """

    def __init__(self, response_id: str, *, has_logprobs: bool) -> None:
        """Has no item yet.

        Args:
            response_id: What the names of items are made from.
            has_logprobs: Whether messages have logprobs.
        """
        self.items: list[Item] = []
        self.num_reasoning_tokens = 0
        self._response_id = response_id
        self._logprobs = TextLogprobs() if has_logprobs else None
        self._open: Item | None = None
        self._changes: list[Change] = []

    def push(self, delta: GenerationDelta) -> list[Change]:
        """Returns what a delta changes."""
        self.num_reasoning_tokens += delta.num_reasoning_tokens
        if self._logprobs is not None and delta.logprobs is not None:
            self._logprobs.push(delta.logprobs)
        if delta.reasoning:
            self._append(ReasoningItem, delta.reasoning)
        calls = delta.tool_calls
        if calls:
            # What goes on with an open call was generated before a text, the others after it.
            num_old = next((n for n, call in enumerate(calls) if call.call_id), len(calls))
            self._push_calls(calls[:num_old])
            calls = calls[num_old:]
        if delta.text:
            self._append(MessageItem, delta.text)
        if calls:
            self._push_calls(calls)
        if self._changes and self._logprobs is not None and not delta.text:
            self._logprobs.clear()
        return self._taken()

    def end(self, status: str) -> list[Change]:
        """Ends the last item; an answer without any gets an empty message."""
        if not self.items:
            self._begin(MessageItem)
        self._end(status)
        return self._taken()

    def _taken(self) -> list[Change]:
        changes, self._changes = self._changes, []
        return changes

    def _push_calls(self, calls: Iterable[ToolCallDelta]) -> None:
        for call in calls:
            if call.call_id:
                self._begin(CallItem, call)
            if call.arguments:
                self._append(CallItem, call.arguments)

    def _begin(self, kind: type[Item], call: ToolCallDelta | None = None) -> Item:
        self._end("completed")
        item = self._open = kind(self._response_id, len(self.items))
        if isinstance(item, CallItem) and call is not None:
            item.call_id, item.name = call.call_id, call.name
        self.items.append(item)
        self._changes.append(Change(Step.BEGIN, item))
        return item

    def _end(self, status: str) -> None:
        if self._open is not None:
            self._open.status = status
            self._changes.append(Change(Step.END, self._open))
            self._open = None

    def _append(self, kind: type[Item], text: str) -> None:
        item = self._open
        if not isinstance(item, kind):
            item = self._begin(kind)
        item.append(text)
        logprobs = None
        if self._logprobs is not None:
            if kind is MessageItem:
                logprobs = self._logprobs.take(text)
                item.logprobs += logprobs
            else:
                self._logprobs.skip()
        self._changes.append(Change(Step.TEXT, item, text, logprobs))
