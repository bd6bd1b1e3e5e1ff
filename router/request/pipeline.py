"""One request through the router: checks, bounds, tokens, and text on the way back."""

import asyncio
import dataclasses
import threading
import time
import uuid
from array import array
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from protos.wire.reason import Reason
from router.errors import Draining, InvalidRequest, QueueFull, RequestError
from router.request import limits
from router.request.answer import Answer
from router.request.chat_grammar import chat_params
from router.request.quota import Quota
from router.text.answer_form import AnswerForm, answer_form
from router.text.token_budget import Abandoned
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types import (
    ChatPrompt,
    EngineEvent,
    Finished,
    GenerationDelta,
    GenerationRequest,
    ModelInfo,
    Prompt,
    TextPrompt,
    TokenPrompt,
    TokenRequest,
    Tokens,
)

_MAX_SHORT_CHAT = 1 << 13
"""Characters up to which a chat is tokenized in the thread that rendered it, in some 12 ms at
worst: the model's next chat waits that long, but a switch of threads would delay this one."""
_UNFINISHED = "internal"
"""The outcome of a request when nothing else is known: an error of the router itself."""

OUTCOMES = ("stop", "length", "cancelled", "other", *(reason.value.lower() for reason in Reason))
"""How a request can end: finished, cancelled by its client, for one of our reasons, or another."""


@dataclass(slots=True, kw_only=True)
class _Progress:
    """Times of one request, in seconds of `time.monotonic`, and its outcome."""

    started: float
    last_tokens: float
    outcome: str = _UNFINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds on the requests of one router.

    Attributes:
        max_concurrent_requests: Requests in progress.
        max_prompt_bytes: UTF-8 bytes of one prompt.
        max_request_bytes: Bytes of the messages of all requests in progress.
        max_queued_prompt_tokens: Tokens of all prompts that no engine has started.
    """

    max_concurrent_requests: int
    max_prompt_bytes: int
    max_request_bytes: int
    max_queued_prompt_tokens: int


class Engines(Protocol):
    """The part of the dispatcher that the pipeline uses; neither imports the other."""

    def model_info(self, name: str) -> ModelInfo:
        """Describes a model; an empty name means the only one."""

    def generate(self, request: TokenRequest) -> AsyncGenerator[EngineEvent, None]:
        """Streams a request's events; closing it cancels the request on its engine."""


class Observer(Protocol):
    """Is notified of the stages of each request, for metrics above this layer.

    Times are in seconds.
    """

    def started(self) -> None:
        """A request arrived."""

    def tokenized(self, seconds: float) -> None:
        """A text or a chat was tokenized."""

    def handed_over(self, num_prompt_tokens: int) -> None:
        """A request goes to the dispatcher."""

    def generated(self, num_tokens: int, seconds: float, *, is_first: bool) -> None:
        """Tokens arrived, `seconds` after the previous ones or the start of the request."""

    def ended(self, outcome: str, seconds: float) -> None:
        """The request ended; the outcome is one of `OUTCOMES`."""


class Pipeline:
    """Passes requests of clients, as text, chats or tokens, to engines and their output back.

    Attributes:
        request_bytes: Bytes of the messages of all requests in progress.
        queued_prompt_tokens: Tokens of the prompts that no engine has started.
    """

    def __init__(
        self,
        fleet: Engines,
        tokenizers: TokenizerPool,
        observer: Observer,
        bounds: Bounds,
        *,
        allow_special_tokens_in_content: bool = False,
    ) -> None:
        self._fleet = fleet
        self._tokenizers = tokenizers
        self._observer = observer
        self._bounds = bounds
        self._allows_special_tokens = allow_special_tokens_in_content
        self.request_bytes = Quota(
            "max_request_bytes", bounds.max_request_bytes, "bytes of requests"
        )
        self.queued_prompt_tokens = Quota(
            "max_queued_prompt_tokens", bounds.max_queued_prompt_tokens, "queued prompt tokens"
        )
        self._num_under_way = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Streams the continuation of one prompt; closing the generator cancels the request.

        A model without a tokenizer takes token IDs and returns them without text.

        Raises:
            RequestError: The request was refused or failed; `status` is for the client.
        """
        with self._recorded(request) as progress, self._slot(request.num_bytes):
            model = self._fleet.model_info(request.model)
            limits.check_request(request, model, self._bounds.max_prompt_bytes)
            tokenizer = await self._tokenizer(model, request.prompt)
            prompt, form = await self._encode(tokenizer, request.prompt, model)
            if isinstance(request.prompt, ChatPrompt) and tokenizer and form:
                params = chat_params(request.sampling_params, request.prompt, form, tokenizer)
                if params is not request.sampling_params:
                    request = dataclasses.replace(request, sampling_params=params)
            limits.check_length(len(prompt), request.sampling_params.max_tokens, model)
            num_queued = len(prompt)
            self.queued_prompt_tokens.take(num_queued)
            try:
                elapsed = time.monotonic() - progress.started
                self._observer.handed_over(len(prompt))
                token_request = _to_token_request(request, model, prompt, elapsed)
                answer = Answer(token_request, model, tokenizer, form=form)
                async with aclosing(self._fleet.generate(token_request)) as events:
                    async for event in events:
                        if num_queued:
                            self.queued_prompt_tokens.give_back(num_queued)
                            num_queued = 0
                        self._note(event, progress)
                        yield answer.delta(event)
            finally:
                self.queued_prompt_tokens.give_back(num_queued)

    async def tokenize(
        self, model_name: str, prompt: TextPrompt | ChatPrompt, *, num_bytes: int = 0
    ) -> "array[int]":
        """Returns the token IDs that `generate` would start from, at most the model's length.

        Args:
            model_name: The model; empty means the only one served.
            prompt: The prompt to tokenize.
            num_bytes: Size of the request message.

        Raises:
            RequestError: As `generate`.
        """
        with self._slot(num_bytes):
            model = self._fleet.model_info(model_name)
            limits.check_prompt(prompt, model, self._bounds.max_prompt_bytes)
            token_ids, _ = await self._encode(await self._tokenizers.get(model), prompt, model)
            limits.check_num_tokens(len(token_ids), model)
            return token_ids

    async def detokenize(
        self,
        model_name: str,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        num_bytes: int = 0,
    ) -> str:
        """Returns the text of token IDs, at most as many as the model's length.

        Args:
            model_name: The model; empty means the only one served.
            token_ids: The tokens to decode.
            skip_special_tokens: Whether special tokens produce no text.
            num_bytes: Size of the request message.

        Raises:
            RequestError: As `generate`.
        """
        with self._slot(num_bytes):
            model = self._fleet.model_info(model_name)
            if len(token_ids) > model.max_model_len:
                raise InvalidRequest(
                    f"number of token_ids is {len(token_ids)}, outside 0 to {model.max_model_len}",
                    {
                        "field": "number of token_ids",
                        "value": str(len(token_ids)),
                        "bounds": f"0 to {model.max_model_len}",
                    },
                )
            limits.check_token_ids("token_ids", token_ids, model)
            tokenizer = await self._tokenizers.get(model)
            return await self._tokenizers.run(
                partial(tokenizer.decode, token_ids, skip_special_tokens=skip_special_tokens)
            )

    def drain(self) -> None:
        """Refuses all new requests from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Waits until no request is in progress."""
        await self._idle.wait()

    @contextmanager
    def _slot(self, num_bytes: int) -> Iterator[None]:
        if self._is_draining:
            raise Draining("the router is shutting down; send the request to another router")
        bound = self._bounds.max_concurrent_requests
        if self._num_under_way >= bound:
            raise QueueFull(
                f"{bound} requests are in progress, the limit of max_concurrent_requests",
                {"max_concurrent_requests": str(bound)},
                retry_after=1.0,
            )
        self.request_bytes.take(num_bytes)
        self._num_under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.request_bytes.give_back(num_bytes)
            self._num_under_way -= 1
            if not self._num_under_way:
                self._idle.set()

    @contextmanager
    def _recorded(self, request: GenerationRequest) -> Iterator["_Progress"]:
        now = time.monotonic()
        progress = _Progress(started=now, last_tokens=now)
        self._observer.started()
        try:
            yield progress
        except RequestError as error:
            reason = error.status.reason.lower()
            progress.outcome = reason if reason in OUTCOMES else "other"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            # After the last message the client may leave in any way.
            if progress.outcome == _UNFINISHED:
                elapsed = time.monotonic() - progress.started
                is_late = request.timeout is not None and elapsed >= request.timeout
                progress.outcome = "deadline_exceeded" if is_late else "cancelled"
            raise
        finally:
            self._observer.ended(progress.outcome, time.monotonic() - progress.started)

    def _note(self, event: EngineEvent, progress: "_Progress") -> None:
        match event:
            case Tokens():
                now = time.monotonic()
                self._observer.generated(
                    len(event.token_ids),
                    now - progress.last_tokens,
                    is_first=progress.last_tokens == progress.started,
                )
                progress.last_tokens = now
            case Finished():
                progress.outcome = event.reason.value

    async def _tokenizer(self, model: ModelInfo, prompt: Prompt) -> Tokenizer | None:
        try:
            return await self._tokenizers.get(model)
        except RequestError:
            # A prompt of token IDs needs no tokenizer: without one, the answer has no text.
            if isinstance(prompt, TokenPrompt):
                return None
            raise

    async def _encode(
        self, tokenizer: Tokenizer | None, prompt: Prompt, model: ModelInfo
    ) -> "tuple[array[int], AnswerForm | None]":
        """Returns the tokens of a prompt, and what the answer to a chat will look like."""
        if isinstance(prompt, TokenPrompt):
            return array("i", prompt.token_ids.tobytes()), None
        assert tokenizer is not None, "only token prompts go without one"
        started = time.monotonic()
        is_over = threading.Event()
        bounds = (model.max_model_len, is_over.is_set)
        form = None
        try:
            if isinstance(prompt, TextPrompt):
                token_ids = await self._tokenizers.run(tokenizer.encode_text, prompt.text, *bounds)
            else:
                token_ids, form = await self._encode_chat(tokenizer, prompt, *bounds)
        finally:
            # Stops the thread's work if the client has left.
            is_over.set()
        self._observer.tokenized(time.monotonic() - started)
        return token_ids, form

    async def _encode_chat(
        self,
        tokenizer: Tokenizer,
        chat: ChatPrompt,
        max_tokens: int,
        is_cancelled: Callable[[], bool],
    ) -> "tuple[array[int], AnswerForm]":
        def encode(text: str, marker: str) -> "array[int]":
            return tokenizer.encode_rendered(text, marker, max_tokens, is_cancelled)

        def lay_out() -> "tuple[str, str, array[int] | None]":
            protected, marker = chat, ""
            if not self._allows_special_tokens:
                protected, marker = tokenizer.protect(chat)
            if is_cancelled():
                raise Abandoned
            text = tokenizer.chat_template.render(protected)
            is_short = len(text) <= _MAX_SHORT_CHAT
            return text, marker, encode(text, marker) if is_short else None

        text, marker, token_ids = await self._tokenizers.run_chat(tokenizer, lay_out)
        if token_ids is None:
            token_ids = await self._tokenizers.run(encode, text, marker)
        return token_ids, answer_form(tokenizer.formats, chat, text)


def _to_token_request(
    request: GenerationRequest, model: ModelInfo, prompt: "array[int]", elapsed: float
) -> TokenRequest:
    timeout = request.timeout
    return TokenRequest(
        request_id=request.request_id or uuid.uuid4().hex,
        model=model.name,
        model_info=model,
        prompt_token_ids=prompt,
        sampling_params=request.sampling_params,
        priority=request.priority,
        cache_salt=request.cache_salt,
        timeout=None if timeout is None else max(0.0, timeout - elapsed),
        pipeline_seconds=elapsed,
        traceparent=request.traceparent,
        tracestate=request.tracestate,
    )
