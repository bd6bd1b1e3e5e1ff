"""Writes answers to chats in the form of OpenAI's API: whole, or as server-sent events."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

from router.http.answers import COMMENT, event, numbers, openai_usage, quoted
from router.http.chat.logprobs import chat_logprobs, logprobs_object, prompt_logprobs
from router.http.errors import ErrorForm, Refusal, openai_error
from router.types.engine_state import ModelSnapshot
from router.types.generation import Admission, Finish, GenerationDelta, ScoredTokens, ToolCallDelta

Models = Callable[[], Sequence[ModelSnapshot]]

_MAX_FINGERPRINT = 16
_DONE = b"data: [DONE]\n\n"
_NO_DETAILS = b'"logprobs":null'
_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(messages\[\d+\])\.parts", r"\1.content"),
        (
            r"(messages\[\d+\]\.tool_calls\[\d+\]|tools\[\d+\])\.(name|parameters)",
            r"\1.function.\2",
        ),
        (r"tool_choice\.function_name", "tool_choice.function.name"),
        (r"logprobs(?= is [1-9]|$)", "top_logprobs"),
        (r"grammar(?:\.\w+)?(?= cannot be used|$)", "response_format or structured_outputs"),
    )
]
"""What this API calls fields of the router's, at the beginning of an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a client wants of an answer beside its text.

    Attributes:
        has_usage: Whether a stream ends with the token counts.
        has_usage_always: Whether, beside that, each chunk has those so far.
        has_logprobs: Whether the client has asked for logprobs of the answer.
        has_token_ids: Whether the tokens of prompt and answer are told, as vLLM tells them.
    """

    has_usage: bool = False
    has_usage_always: bool = False
    has_logprobs: bool = False
    has_token_ids: bool = False


def chat_error(refusal: Refusal) -> dict[str, Any]:
    """Returns the error object of OpenAI's API, with the names that fields have in a chat."""
    body = openai_error(refusal)
    error = body["error"]
    error["message"] = _renamed(refusal.message)
    error["param"] = _renamed(refusal.field) or None
    return body


class _Usage:
    """Counts the tokens of all choices of an answer."""

    def __init__(self) -> None:
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_completion_tokens = 0

    def admit(self, admission: Admission) -> None:
        """Counts the prompt once; further choices find it in the cache of the first."""
        if not self.num_prompt_tokens:
            self.num_prompt_tokens = admission.num_prompt_tokens
            self.num_cached_tokens = admission.num_cached_tokens

    def to_json(self) -> bytes:
        """Returns the counts so far."""
        return openai_usage(
            self.num_prompt_tokens, self.num_completion_tokens, self.num_cached_tokens
        )


class ChatEvents:
    """Writes an answer as events, each with a chunk of one choice."""

    keep_alive = COMMENT

    def __init__(self, extras: Extras, models: Models) -> None:
        self.error_form: ErrorForm = chat_error
        self._extras = extras
        self._models = models
        self._usage = _Usage()
        self._head = b""
        self._tail = b',"usage":null}\n\n' if extras.has_usage else b"}\n\n"
        self._text_heads: dict[int, bytes] = {}
        self._text_tail = b'},%b,"finish_reason":null}]%b' % (_NO_DETAILS, self._tail)
        self._has_details = extras.has_usage_always or extras.has_token_ids

    def begin(self) -> bytes:
        """Nothing: each choice begins with its own admission."""
        return b""

    def delta(self, delta: GenerationDelta) -> bytes:
        """Returns a chunk for each kind of output, and one for the end."""
        self._usage.num_completion_tokens += len(delta.token_ids)
        if (
            not delta.text
            or delta.admission is not None
            or delta.finish is not None
            or delta.logprobs is not None
            or delta.reasoning
            or delta.tool_calls
            or self._has_details
        ):
            return self._chunks(delta)
        return self._text_heads[delta.index] + quoted(delta.text) + self._text_tail

    def end(self) -> bytes:
        """Returns the counts, if they are asked for, and the end of the stream."""
        if not self._extras.has_usage:
            return _DONE
        return b'%b"choices":[],"usage":%b}\n\n%b' % (self._head, self._usage.to_json(), _DONE)

    def error(self, refusal: Refusal) -> bytes:
        """Returns the error, without the end that a complete stream has."""
        return event(chat_error(refusal))

    def _chunks(self, delta: GenerationDelta) -> bytes:
        index, chunks = delta.index, []
        if delta.admission is not None:
            chunks.append(self._admission(index, delta.admission))
        fields, details = self._fields(delta), self._details(delta)
        if details != _NO_DETAILS:
            # Such as a token that is part of a character.
            fields = fields or [b'"content":""']
        for one in fields:
            chunks.append(self._chunk(index, one, details))
            details = _NO_DETAILS
        if delta.finish is not None:
            chunks.append(self._chunk(index, b"", reason=_reason(delta.finish)))
        return b"".join(chunks)

    def _admission(self, index: int, admission: Admission) -> bytes:
        self._usage.admit(admission)
        if not self._head:
            self._head = b"data: " + _head("chat.completion.chunk", admission, self._models)
        prompt = b""
        if self._extras.has_token_ids and not self._text_heads:
            prompt = b'"prompt_token_ids":%b,' % numbers(admission.prompt_token_ids)
        self._text_heads[index] = self._chunk_head(index) + b'"content":'
        return self._chunk(index, b'"role":"assistant","content":"","refusal":null', prompt=prompt)

    def _details(self, delta: GenerationDelta) -> bytes:
        details = _NO_DETAILS
        if delta.logprobs is not None:
            details = b'"logprobs":' + logprobs_object(chat_logprobs(delta.logprobs))
        if self._extras.has_token_ids and delta.token_ids:
            details += b',"token_ids":' + numbers(delta.token_ids)
        return details

    def _fields(self, delta: GenerationDelta) -> list[bytes]:
        fields = []
        if delta.reasoning:
            reasoning = quoted(delta.reasoning)
            fields.append(b'"reasoning":%b,"reasoning_content":%b' % (reasoning, reasoning))
        if delta.text:
            fields.append(b'"content":' + quoted(delta.text))
        # Many clients look for one piece of one call in a chunk.
        for _, pieces in groupby(delta.tool_calls, attrgetter("index")):
            fields.append(b'"tool_calls":[%b]' % _call_chunk(list(pieces)))
        return fields

    def _chunk(
        self,
        index: int,
        fields: bytes,
        details: bytes = _NO_DETAILS,
        *,
        reason: bytes = b"null",
        prompt: bytes = b"",
    ) -> bytes:
        if self._extras.has_usage_always:
            self._tail = b',"usage":%b}\n\n' % self._usage.to_json()
        return b'%b%b},%b,"finish_reason":%b}]%b' % (
            self._chunk_head(index, prompt),
            fields,
            details,
            reason,
            self._tail,
        )

    def _chunk_head(self, index: int, prompt: bytes = b"") -> bytes:
        return b'%b%b"choices":[{"index":%d,"delta":{' % (self._head, prompt, index)


@dataclass(slots=True)
class _Choice:
    """What is known of one choice."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    logprobs: list[bytes] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    reason: bytes = b"null"


class WholeAnswer:
    """Collects an answer."""

    def __init__(self, extras: Extras, models: Models) -> None:
        self._extras = extras
        self._models = models
        self._usage = _Usage()
        self._head = b""
        self._choices: dict[int, _Choice] = {}
        self._prompt_logprobs: list[ScoredTokens] = []

    def read(self, delta: GenerationDelta) -> None:
        """Adds what is new."""
        choice = self._choices.setdefault(delta.index, _Choice())
        if delta.admission is not None:
            self._admit(delta.admission)
        choice.text.append(delta.text)
        if delta.reasoning:
            choice.reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            choice.calls.setdefault(call.index, []).append(call)
        if delta.logprobs is not None:
            # At once, since all of them together would hold up others.
            choice.logprobs.append(chat_logprobs(delta.logprobs))
        if self._extras.has_token_ids:
            choice.token_ids += delta.token_ids
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs.append(delta.prompt_logprobs)
        if delta.finish is not None:
            choice.reason = _reason(delta.finish)
            self._usage.num_completion_tokens += delta.finish.num_completion_tokens

    def to_json(self) -> bytes:
        """Returns the complete answer."""
        choices = b",".join(
            b'{"index":%d,"message":%b,%b,"finish_reason":%b}'
            % (index, _message(choice), self._details(choice), choice.reason)
            for index, choice in sorted(self._choices.items())
        )
        scored = b""
        if self._prompt_logprobs:
            scored = b',"prompt_logprobs":' + prompt_logprobs(self._prompt_logprobs)
        return b'%b"choices":[%b],"usage":%b%b}' % (
            self._head,
            choices,
            self._usage.to_json(),
            scored,
        )

    def _admit(self, admission: Admission) -> None:
        self._usage.admit(admission)
        if not self._head:
            self._head = _head("chat.completion", admission, self._models)
            if self._extras.has_token_ids:
                self._head += b'"prompt_token_ids":%b,' % numbers(admission.prompt_token_ids)

    def _details(self, choice: _Choice) -> bytes:
        details = _NO_DETAILS
        if self._extras.has_logprobs:
            details = b'"logprobs":' + logprobs_object(b",".join(choice.logprobs))
        if self._extras.has_token_ids:
            details += b',"token_ids":' + numbers(choice.token_ids)
        return details


def _head(kind: str, admission: Admission, models: Models) -> bytes:
    """Returns the fields that all chunks of an answer have in common, with the brace before."""
    prints = (m.info.fingerprint for m in models() if m.info.name == admission.model)
    fingerprint = next(prints, "")[:_MAX_FINGERPRINT]
    return (b'{"id":%b,"object":"%b","created":%d,"model":%b,"system_fingerprint":%b,') % (
        quoted(f"chatcmpl-{admission.request_id}"),
        kind.encode(),
        int(time.time()),
        quoted(admission.model),
        quoted(f"fp_{fingerprint}") if fingerprint else b"null",
    )


def _message(choice: _Choice) -> bytes:
    text = "".join(choice.text)
    content = b"null" if choice.calls and not text else quoted(text)
    fields = [b'{"role":"assistant","content":%b,"refusal":null' % content]
    if choice.reasoning:
        reasoning = quoted("".join(choice.reasoning))
        fields.append(b',"reasoning":%b,"reasoning_content":%b' % (reasoning, reasoning))
    if choice.calls:
        calls = b",".join(_whole_call(pieces) for _, pieces in sorted(choice.calls.items()))
        fields.append(b',"tool_calls":[%b]' % calls)
    return b"".join(fields) + b"}"


def _whole_call(pieces: Sequence[ToolCallDelta]) -> bytes:
    arguments = "".join(piece.arguments for piece in pieces)
    return b'{"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}' % (
        quoted(pieces[0].call_id),
        quoted(pieces[0].name),
        quoted(arguments),
    )


def _call_chunk(pieces: Sequence[ToolCallDelta]) -> bytes:
    call = pieces[0]
    arguments = quoted("".join(piece.arguments for piece in pieces))
    if not call.name:
        return b'{"index":%d,"function":{"arguments":%b}}' % (call.index, arguments)
    return (b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}') % (
        call.index,
        quoted(call.call_id),
        quoted(call.name),
        arguments,
    )


def _renamed(text: str) -> str:
    for pattern, name in _NAMES:
        if match := pattern.match(text):
            return match.expand(name) + text[match.end() :]
    return text


def _reason(finish: Finish) -> bytes:
    return b'"%b"' % finish.reason.value.encode()
