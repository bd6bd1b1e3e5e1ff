"""Writes an answer of the Responses API as typed, numbered events."""

import json
from typing import Any

from router.http.answers import COMMENT, event, quoted
from router.http.errors import ErrorForm, Refusal
from router.http.responses.answer import Answer, responses_error
from router.http.responses.output import Change, Item, Step
from router.types.generation import GenerationDelta

JsonObject = dict[str, Any]


class ResponseEvents:
    """Writes one answer, as `EventWriter` says."""

    keep_alive = COMMENT

    def __init__(self, answer: Answer) -> None:
        """Nothing has been written yet."""
        self.error_form: ErrorForm = responses_error
        self._answer = answer
        # Those of `begin`, which is called after the first delta.
        self._num_events = 2
        self._item: Item | None = None
        self._head = b""
        """How an event with a text of this item begins."""
        self._no_logprobs = b""

    def begin(self) -> bytes:  # noqa: D102
        response = self._answer.begun()
        return b"".join(
            event({"type": name, "sequence_number": number, "response": response}, name)
            for number, name in enumerate(("response.created", "response.in_progress"))
        )

    def delta(self, delta: GenerationDelta) -> bytes:  # noqa: D102
        return self._changed(self._answer.push(delta))

    def end(self) -> bytes:  # noqa: D102
        changes = self._changed(self._answer.end())
        response = self._answer.ended()
        return changes + self._event(f"response.{response['status']}", {"response": response})

    def error(self, refusal: Refusal) -> bytes:  # noqa: D102
        error = responses_error(refusal)["error"]
        if not self._answer.has_begun:
            self._num_events = 0
        told = self._event("error", {name: error[name] for name in ("code", "message", "param")})
        if not self._answer.has_begun:
            return told
        return told + self._event("response.failed", {"response": self._answer.failed(refusal)})

    def _changed(self, changes: list[Change]) -> bytes:
        if len(changes) == 1 and changes[0].step is Step.TEXT:
            return self._text(changes[0])
        return b"".join(map(self._change, changes))

    def _change(self, change: Change) -> bytes:
        match change.step:
            case Step.BEGIN:
                return self._begin(change.item)
            case Step.TEXT:
                return self._text(change)
            case Step.END:
                return self._end(change.item)

    def _begin(self, item: Item) -> bytes:
        written = self._event(
            "response.output_item.added", {"output_index": item.index, "item": item.blank()}
        )
        part = item.part("")
        if part is None:
            return written
        return written + self._event("response.content_part.added", _place(item) | {"part": part})

    def _text(self, change: Change) -> bytes:
        """Writes one event by hand, as there is one per token."""
        item = change.item
        if item is not self._item:
            self._item = item
            name = f"response.{item.text_name}.delta"
            fields = json.dumps({"type": name} | _place(item))
            self._head = f"event: {name}\ndata: {fields[:-1]},".encode()
            self._no_logprobs = b'"logprobs":[],' if item.text_name == "output_text" else b""
        logprobs = self._no_logprobs
        if change.logprobs:
            logprobs = f'"logprobs":{json.dumps(change.logprobs)},'.encode()
        number = self._num_events
        self._num_events = number + 1
        return b'%b%b"delta":%b,"sequence_number":%d}\n\n' % (
            self._head,
            logprobs,
            quoted(change.text),
            number,
        )

    def _end(self, item: Item) -> bytes:
        place, part = _place(item), item.part(item.text)
        done = f"response.{item.text_name}.done"
        if part is None:
            written = self._event(done, place | {"arguments": item.text})
        else:
            shown = {name: part[name] for name in ("text", "logprobs") if name in part}
            written = self._event(done, place | shown)
            written += self._event("response.content_part.done", place | {"part": part})
        return written + self._event(
            "response.output_item.done", {"output_index": item.index, "item": item.entry()}
        )

    def _event(self, name: str, fields: JsonObject) -> bytes:
        number = self._num_events
        self._num_events = number + 1
        return event({"type": name, "sequence_number": number} | fields, name)


def _place(item: Item) -> JsonObject:
    place: JsonObject = {"item_id": item.item_id, "output_index": item.index}
    return place if item.part("") is None else place | {"content_index": 0}
