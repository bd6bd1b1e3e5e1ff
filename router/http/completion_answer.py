"""Writes the answers to completions, at once or in parts, in the form of OpenAI's API."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from router.http.answers import event, quoted
from router.http.completion_logprobs import LogprobLists, prompt_entries
from router.http.errors import ErrorForm, Refusal, openai_error
from router.types import Finish, GenerationDelta

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a client wants to see of one prompt.

    Attributes:
        text: Its text, if it is echoed.
        token_ids: Its tokens, if they or their logprobs are shown.
    """

    text: str = ""
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionForm:
    """What a client has asked of the form of its answer.

    Attributes:
        completion_id: The answer's ID.
        created: When it was asked for, in seconds since 1970.
        model: The model's name.
        fingerprint: The model's fingerprint, or empty.
        n: Choices of each prompt.
        openings: Of each prompt.
        echoes: Whether choices begin with the prompt.
        num_logprobs: The likeliest tokens shown at each position; None shows no logprobs.
        num_prompt_logprobs: The same of the prompt, in vLLM's form.
        shows_token_ids: Whether choices have the IDs of their tokens, as vLLM's.
        tokens_as_ids: Whether tokens of logprobs are written by their IDs.
        stop_token_ids: Those that the client has asked for.
        has_usage: Whether a stream ends with the tokens used.
        has_usage_always: Whether each part of a stream has the tokens used so far.
    """

    completion_id: str
    created: int
    model: str
    fingerprint: str
    n: int
    openings: Sequence[Opening]
    echoes: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    shows_token_ids: bool = False
    tokens_as_ids: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    has_usage: bool = False
    has_usage_always: bool = False

    @property
    def head(self) -> dict[str, Any]:
        """What an answer and each part of one begin with."""
        return {
            "id": self.completion_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.fingerprint}" if self.fingerprint else None,
        }

    def end(self, finish: Finish | None) -> dict[str, Any]:
        """Why a choice has ended, if it has."""
        if finish is None:
            return {"finish_reason": None}
        stop = finish.stop_text
        is_own = finish.stop_token_id in self.stop_token_ids
        return {
            "finish_reason": finish.reason.value,
            "stop_reason": finish.stop_token_id if stop is None and is_own else stop,
        }

    def lists(self, position: int = 0) -> LogprobLists:
        """Returns lists for logprobs of tokens from a position of the text on."""
        assert self.num_logprobs is not None, "logprobs are shown"
        return LogprobLists(self.num_logprobs, as_token_ids=self.tokens_as_ids, position=position)


class Usage:
    """Counts the tokens of an answer. Those of a prompt count once, however many its choices."""

    def __init__(self, n: int, num_prompts: int) -> None:
        """Counts nothing yet.

        Args:
            n: Choices of each prompt.
            num_prompts: How many prompts there are.
        """
        self._n = n
        self._num_prompt_tokens = [0] * num_prompts
        self._num_cached_tokens = [0] * num_prompts
        self._num_completion_tokens = [0] * (n * num_prompts)

    def read(self, delta: GenerationDelta) -> None:
        """Counts the tokens of a delta."""
        self._num_completion_tokens[delta.index] += len(delta.token_ids)
        if delta.admission is not None and delta.index % self._n == 0:
            prompt = delta.index // self._n
            self._num_prompt_tokens[prompt] = delta.admission.num_prompt_tokens
            self._num_cached_tokens[prompt] = delta.admission.num_cached_tokens

    def total(self) -> dict[str, Any]:
        """Returns the tokens of all choices."""
        return _usage(
            sum(self._num_prompt_tokens),
            sum(self._num_completion_tokens),
            sum(self._num_cached_tokens),
        )

    def of_choice(self, index: int) -> dict[str, Any]:
        """Returns the tokens of one choice so far."""
        prompt = index // self._n
        return _usage(
            self._num_prompt_tokens[prompt],
            self._num_completion_tokens[index],
            self._num_cached_tokens[prompt],
        )


class Prompt:
    """What comes of one prompt before its choices.

    Attributes:
        lists: The logprobs to echo, or None.
        entries: The logprobs in vLLM's form, or None.
        held: Deltas that wait until all of the prompt is there.
        is_open: Whether it has been sent.
    """

    def __init__(self, form: CompletionForm, opening: Opening) -> None:
        self._form = form
        self._opening = opening
        self.lists = form.lists() if form.echoes and form.num_logprobs is not None else None
        self.entries: list[dict[str, Any] | None] | None = None
        if form.num_prompt_logprobs is not None:
            self.entries = [None]
        self.held: list[GenerationDelta] = []
        self.is_open = False

    @property
    def is_complete(self) -> bool:
        """Whether all that is to be sent of the prompt is there."""
        return self.lists is None or len(self.lists) == len(self._opening.token_ids)

    def read(self, delta: GenerationDelta) -> None:
        """Takes what is new of the prompt."""
        text, token_ids = self._opening.text, self._opening.token_ids
        scored = delta.prompt_logprobs
        if self.lists is not None and not self.lists and (scored or len(token_ids) == 1):
            first = text if scored is None else scored.texts[token_ids[0]][0]
            self.lists.add_first(token_ids[0], first, text)
        if scored is None:
            return
        if self.lists is not None:
            self.lists.add(scored, len(text))
        if self.entries is not None:
            self.entries += prompt_entries(scored, self._form.num_prompt_logprobs or 0)

    def opening_choice(self) -> dict[str, Any]:
        """Returns the part of a stream that a choice begins with."""
        choice: dict[str, Any] = {
            "text": self._opening.text,
            "logprobs": None if self.lists is None else self.lists.content(),
            "finish_reason": None,
        }
        if self._form.shows_token_ids:
            choice["prompt_token_ids"] = self._opening.token_ids.tolist()
            choice["token_ids"] = []
        return choice


class CompletionAnswer:
    """Collects an answer that is sent at once."""

    def __init__(self, form: CompletionForm) -> None:
        self._form = form
        self._usage = Usage(form.n, len(form.openings))
        self._prompts = [Prompt(form, opening) for opening in form.openings]
        self._choices = [_Choice(form, opening) for opening in form.openings for _ in range(form.n)]

    def read(self, delta: GenerationDelta) -> None:
        """Takes what is new."""
        self._usage.read(delta)
        self._prompts[delta.index // self._form.n].read(delta)
        self._choices[delta.index].read(delta)

    def content(self) -> dict[str, Any]:
        """Returns the answer, which is complete."""
        n = self._form.n
        return {
            **self._form.head,
            "choices": [
                {"index": index, **choice.content(self._prompts[index // n])}
                for index, choice in enumerate(self._choices)
            ],
            "usage": self._usage.total(),
        }


class _Choice:
    """One continuation of an answer that is sent at once."""

    def __init__(self, form: CompletionForm, opening: Opening) -> None:
        self._form = form
        self._opening = opening
        self._texts = [opening.text]
        self._num_characters = len(opening.text)
        self._token_ids: list[int] = []
        self._lists = None if form.num_logprobs is None else form.lists()
        self._finish: Finish | None = None

    def read(self, delta: GenerationDelta) -> None:
        start = self._num_characters
        self._texts.append(delta.text)
        self._num_characters += len(delta.text)
        if self._lists is not None and delta.logprobs is not None:
            self._lists.position = start
            self._lists.add(delta.logprobs, self._num_characters)
        if self._form.shows_token_ids:
            self._token_ids += delta.token_ids
        self._finish = delta.finish or self._finish

    def content(self, prompt: Prompt) -> dict[str, Any]:
        lists = None if self._lists is None else self._lists.content(prompt.lists)
        content = {"text": "".join(self._texts), "logprobs": lists, **self._form.end(self._finish)}
        if self._form.shows_token_ids:
            content["prompt_token_ids"] = self._opening.token_ids.tolist()
            content["token_ids"] = self._token_ids
        if prompt.entries is not None:
            content["prompt_logprobs"] = prompt.entries
        return content


class CompletionStream:
    """Writes an answer in parts, one for each delta that has something to show."""

    error_form: ErrorForm = staticmethod(openai_error)

    def __init__(self, form: CompletionForm) -> None:
        self._form = form
        self._usage = Usage(form.n, len(form.openings))
        self._head = form.head
        self._is_plain = (
            form.num_logprobs is None and not form.shows_token_ids and not form.has_usage_always
        )
        # All but index and text of a part that has nothing else.
        self._begin = event({**self._head, "choices": []})[: -len(b"]}\n\n")] + b'{"index":'
        self._end = b',"logprobs":null,"finish_reason":null}]%b}\n\n' % (
            b',"usage":null' if form.has_usage else b""
        )
        self._opens = form.echoes or form.shows_token_ids
        self._prompts = [Prompt(form, opening) for opening in form.openings]
        self._num_characters = [
            len(opening.text) for opening in form.openings for _ in range(form.n)
        ]

    def begin(self) -> bytes:
        """Returns nothing: the first part is like the others."""
        return b""

    def delta(self, delta: GenerationDelta) -> bytes:
        """Returns the part for a delta, if it has something to show."""
        self._usage.read(delta)
        if self._opens:
            prompt = self._prompts[delta.index // self._form.n]
            if not prompt.is_open:
                return self._open(prompt, delta)
        return self._part(delta)

    def end(self) -> bytes:
        """Returns the tokens used, if the client wants to know, and the end of the stream."""
        if not self._form.has_usage:
            return _DONE
        return event({**self._head, "choices": [], "usage": self._usage.total()}) + _DONE

    def error(self, refusal: Refusal) -> bytes:
        """Returns the error, without the end that a complete stream has."""
        return event(openai_error(refusal))

    def _open(self, prompt: Prompt, delta: GenerationDelta) -> bytes:
        """Holds deltas until all of the prompt is there, and then returns the parts of all."""
        prompt.read(delta)
        prompt.held.append(delta)
        if not prompt.is_complete:
            return b""
        prompt.is_open = True
        n = self._form.n
        first = delta.index - delta.index % n
        parts = [self._event(index, prompt.opening_choice()) for index in range(first, first + n)]
        parts += map(self._part, prompt.held)
        prompt.held.clear()
        return b"".join(parts)

    def _part(self, delta: GenerationDelta) -> bytes:
        if self._is_plain and delta.finish is None:
            if not delta.text:
                return b""
            index = str(delta.index).encode()
            return b'%b%b,"text":%b%b' % (self._begin, index, quoted(delta.text), self._end)
        if not (delta.text or delta.token_ids or delta.finish):
            return b""
        choice: dict[str, Any] = {
            "text": delta.text,
            "logprobs": self._lists(delta),
            **self._form.end(delta.finish),
        }
        if self._form.shows_token_ids:
            choice["token_ids"] = delta.token_ids
        return self._event(delta.index, choice)

    def _lists(self, delta: GenerationDelta) -> dict[str, Any] | None:
        start = self._num_characters[delta.index]
        end = self._num_characters[delta.index] = start + len(delta.text)
        if delta.logprobs is None or self._form.num_logprobs is None:
            return None
        lists = self._form.lists(start)
        lists.add(delta.logprobs, end)
        return lists.content()

    def _event(self, index: int, choice: dict[str, Any]) -> bytes:
        content = {**self._head, "choices": [{"index": index, **choice}]}
        if self._form.has_usage_always:
            content["usage"] = self._usage.of_choice(index)
        elif self._form.has_usage:
            content["usage"] = None
        return event(content)


def _usage(num_prompt: int, num_completion: int, num_cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }
