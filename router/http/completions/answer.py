"""Writes the answers to completions, at once or in parts, in the form of OpenAI's API."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.http.answers import COMMENT, event, numbers, openai_usage, quoted
from router.http.completions.logprobs import LogprobLists, prompt_entries
from router.http.errors import ErrorForm, Refusal, openai_error
from router.types.generation import Finish, GenerationDelta

_DONE = b"data: [DONE]\n\n"

Json = dict[str, bytes]
"""An object of JSON, with its fields as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionForm:
    """What a client has asked of the form of its answer.

    Attributes:
        completion_id: The answer's ID.
        created: When it was asked for, in seconds since 1970.
        model: The model's name.
        fingerprint: The model's fingerprint, or empty.
        n: Choices of each prompt.
        texts: What the choices of each prompt begin with, which is empty unless they echo it.
        echoes: Whether they do.
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
    texts: Sequence[str]
    echoes: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    shows_token_ids: bool = False
    tokens_as_ids: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    has_usage: bool = False
    has_usage_always: bool = False

    @property
    def head(self) -> bytes:
        """What an answer and each part of one begin with, up to the choices."""
        return (
            b'{"id":%b,"object":"text_completion","created":%d,"model":%b,"system_fingerprint":%b,'
        ) % (
            quoted(self.completion_id),
            self.created,
            quoted(self.model),
            quoted(f"fp_{self.fingerprint}") if self.fingerprint else b"null",
        )

    def end(self, finish: Finish | None) -> "Json":
        """Returns why a choice has ended, if it has."""
        if finish is None:
            return {"finish_reason": b"null"}
        stop = b"null"
        if finish.stop_text is not None:
            stop = quoted(finish.stop_text)
        elif finish.stop_token_id in self.stop_token_ids:
            stop = b"%d" % finish.stop_token_id
        return {"finish_reason": quoted(finish.reason.value), "stop_reason": stop}

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

    def total(self) -> bytes:
        """Returns the tokens of all choices."""
        return openai_usage(
            sum(self._num_prompt_tokens),
            sum(self._num_completion_tokens),
            sum(self._num_cached_tokens),
        )

    def of_choice(self, index: int) -> bytes:
        """Returns the tokens of one choice so far."""
        prompt = index // self._n
        return openai_usage(
            self._num_prompt_tokens[prompt],
            self._num_completion_tokens[index],
            self._num_cached_tokens[prompt],
        )


class Prompt:
    """What comes of one prompt before its choices.

    Attributes:
        text: The text to echo, or empty.
        token_ids: The tokens, which are there from the first delta on.
        lists: The logprobs to echo, or None.
        entries: The logprobs in vLLM's form as JSON, or None.
        held: Deltas that wait until all of the prompt is there.
        is_open: Whether it has been sent.
    """

    def __init__(self, form: CompletionForm, text: str) -> None:
        self._form = form
        self.text = text
        self.token_ids: Sequence[int] = ()
        self.lists = form.lists() if form.echoes and form.num_logprobs is not None else None
        self.entries = None if form.num_prompt_logprobs is None else [b"null"]
        self.held: list[GenerationDelta] = []
        self.is_open = False

    @property
    def is_complete(self) -> bool:
        """Whether all that is to be sent of the prompt is there."""
        return self.lists is None or len(self.lists) == len(self.token_ids)

    def read(self, delta: GenerationDelta) -> None:
        """Takes what is new of the prompt."""
        if delta.admission is not None:
            self.token_ids = delta.admission.prompt_token_ids
        text, token_ids, scored = self.text, self.token_ids, delta.prompt_logprobs
        if self.lists is not None and not self.lists and (scored or len(token_ids) == 1):
            first = (text, text.encode()) if scored is None else scored.texts[token_ids[0]]
            self.lists.add_first(token_ids[0], *first, text)
        if scored is None:
            return
        if self.lists is not None:
            self.lists.add(scored, len(text))
        if self.entries is not None:
            self.entries += prompt_entries(scored, self._form.num_prompt_logprobs or 0)

    def choice(self) -> Json:
        """Returns the part of a stream that a choice begins with."""
        choice = {
            "text": quoted(self.text),
            "logprobs": b"null" if self.lists is None else self.lists.to_json(),
            "finish_reason": b"null",
        }
        if self._form.shows_token_ids:
            choice["prompt_token_ids"] = numbers(self.token_ids)
            choice["token_ids"] = b"[]"
        return choice


class CompletionAnswer:
    """Collects an answer that is sent at once."""

    def __init__(self, form: CompletionForm) -> None:
        self._form = form
        self._usage = Usage(form.n, len(form.texts))
        self._prompts = [Prompt(form, text) for text in form.texts]
        self._choices = [_Choice(form, text) for text in form.texts for _ in range(form.n)]

    def read(self, delta: GenerationDelta) -> None:
        """Takes what is new."""
        self._usage.read(delta)
        self._prompts[delta.index // self._form.n].read(delta)
        self._choices[delta.index].read(delta)

    def to_json(self) -> bytes:
        """Returns the answer, which is complete."""
        n = self._form.n
        choices = [
            _object({"index": b"%d" % index, **choice.content(self._prompts[index // n])})
            for index, choice in enumerate(self._choices)
        ]
        return b'%b"choices":[%b],"usage":%b}' % (
            self._form.head,
            b",".join(choices),
            self._usage.total(),
        )


class _Choice:
    """One continuation of an answer that is sent at once."""

    def __init__(self, form: CompletionForm, text: str) -> None:
        self._form = form
        self._texts = [text]
        self._num_characters = len(text)
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

    def content(self, prompt: Prompt) -> Json:
        content = {
            "text": quoted("".join(self._texts)),
            "logprobs": b"null" if self._lists is None else self._lists.to_json(prompt.lists),
            **self._form.end(self._finish),
        }
        if self._form.shows_token_ids:
            content["prompt_token_ids"] = numbers(prompt.token_ids)
            content["token_ids"] = numbers(self._token_ids)
        if prompt.entries is not None:
            content["prompt_logprobs"] = b"[%b]" % b",".join(prompt.entries)
        return content


class CompletionStream:
    """Writes an answer in parts, one for each delta that has something to show."""

    error_form: ErrorForm = staticmethod(openai_error)
    keep_alive = COMMENT

    def __init__(self, form: CompletionForm) -> None:
        self._form = form
        self._usage = Usage(form.n, len(form.texts))
        self._head = b'data: %b"choices":[' % form.head
        self._is_plain = (
            form.num_logprobs is None and not form.shows_token_ids and not form.has_usage_always
        )
        self._tail = b'],"usage":null}\n\n' if form.has_usage else b"]}\n\n"
        self._opens = form.echoes or form.shows_token_ids
        self._prompts = [Prompt(form, text) for text in form.texts]
        self._num_characters = [len(text) for text in form.texts for _ in range(form.n)]

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
        return b'%b],"usage":%b}\n\n%b' % (self._head, self._usage.total(), _DONE)

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
        choice = prompt.choice()
        parts = [self._event(index, choice) for index in range(first, first + n)]
        parts += map(self._part, prompt.held)
        prompt.held.clear()
        return b"".join(parts)

    def _part(self, delta: GenerationDelta) -> bytes:
        if self._is_plain and delta.finish is None:
            if not delta.text:
                return b""
            return b'%b{"index":%d,"text":%b,"logprobs":null,"finish_reason":null}%b' % (
                self._head,
                delta.index,
                quoted(delta.text),
                self._tail,
            )
        if not (delta.text or delta.token_ids or delta.finish):
            return b""
        choice = {
            "text": quoted(delta.text),
            "logprobs": self._lists(delta),
            **self._form.end(delta.finish),
        }
        if self._form.shows_token_ids:
            choice["token_ids"] = numbers(delta.token_ids)
        return self._event(delta.index, choice)

    def _lists(self, delta: GenerationDelta) -> bytes:
        start = self._num_characters[delta.index]
        end = self._num_characters[delta.index] = start + len(delta.text)
        if delta.logprobs is None or self._form.num_logprobs is None:
            return b"null"
        lists = self._form.lists(start)
        lists.add(delta.logprobs, end)
        return lists.to_json()

    def _event(self, index: int, choice: Json) -> bytes:
        tail = self._tail
        if self._form.has_usage_always:
            tail = b'],"usage":%b}\n\n' % self._usage.of_choice(index)
        return b"%b%b%b" % (self._head, _object({"index": b"%d" % index, **choice}), tail)


def _object(fields: Json) -> bytes:
    return b"{%b}" % b",".join([b'"%b":%b' % (name.encode(), one) for name, one in fields.items()])
