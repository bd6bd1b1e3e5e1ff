"""One request through the router: checks, bounds, tokens, and text on the way back."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from protos.wire.sampling_params import SamplingParams, with_defaults
from router.access.caller import Caller
from router.errors import (
    InvalidRequest,
    NoTokenizer,
    RequestError,
    UnknownModel,
)
from router.request import limits, parameters
from router.request.answer import Answer
from router.request.chat_grammar import chat_params
from router.request.metering import admitted, metered
from router.request.progress import Observer, Observers, Progress, Recorded, RequestObserver
from router.request.prompt_encoder import PromptEncoder
from router.request.quota import Quota
from router.request.samples import merged
from router.request.slots import Slots
from router.text.stop_texts import StopSearch, StopTexts
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import Admitted, EngineEvent, FinishReason, TokenRequest, Tokens
from router.types.engine_state import ModelInfo
from router.types.generation import GenerationDelta, GenerationRequest
from router.types.prompts import ChatPrompt, TextPrompt, TokenPrompt

if TYPE_CHECKING:
    from array import array

_MAX_SHORT_STOPS = 1 << 10
"""Characters of all stop texts up to which they are prepared at once, in a millisecond or two."""


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


_NO_FINISH = "an engine's events ended without a finish"


@dataclass(slots=True)
class _Sample:
    """One continuation of a prompt."""

    request: TokenRequest
    answer: Answer
    progress: Progress
    observer: Observer
    held: GenerationDelta | None = None
    """Given out together with the next one, which follows at once."""


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
        observers: Observers,
        bounds: Bounds,
        *,
        allow_special_tokens_in_content: bool = False,
    ) -> None:
        self._fleet = fleet
        self._tokenizers = tokenizers
        self._observers = observers
        self._bounds = bounds
        self._encoder = PromptEncoder(
            tokenizers,
            observers,
            allow_special_tokens_in_content=allow_special_tokens_in_content,
        )
        self.request_bytes = Quota(
            "max_request_bytes", bounds.max_request_bytes, "bytes of requests"
        )
        self.queued_prompt_tokens = Quota(
            "max_queued_prompt_tokens", bounds.max_queued_prompt_tokens, "queued prompt tokens"
        )
        self._slots = Slots(bounds.max_concurrent_requests, self.request_bytes)

    @property
    def max_requests(self) -> int:
        """The most requests in progress; each continuation of a prompt is one."""
        return self._bounds.max_concurrent_requests

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Streams the continuation of one prompt; closing the generator cancels the request.

        A model without a tokenizer takes token IDs and returns them without text.

        Raises:
            RequestError: The request was refused or failed; `status` is for the client.
        """
        n = parameters.num_samples(request)
        caller = request.caller
        found = self._find(request.model, caller)
        with (
            Recorded(self._observer(found, request.model), n, request.timeout) as progresses,
            self._slots.taken(request.num_bytes, n),
            admitted(caller, n),
        ):
            model = _known(found)
            observer = self._observers.of_model(model.name)
            limits.check_request(request, model, self._bounds.max_prompt_bytes)
            parameters.check_parameters(request, model)
            tokenizer = await self._tokenizer(model, request)
            prompt, form = await self._encoder.encode(tokenizer, request.prompt, model)
            if isinstance(request.prompt, ChatPrompt) and tokenizer and form:
                params = chat_params(request.sampling_params, request.prompt, form, tokenizer)
                request = replace(request, sampling_params=params)
            request = limits.fitted(request, len(prompt), model)
            limits.check_length(len(prompt), request.sampling_params.max_tokens, model)
            params = await self._resolve(request, model, tokenizer)
            stop_texts = await self._stop_texts(request.stop)
            with (
                self._queued(observer, progresses, len(prompt)),
                metered(caller, progresses, len(prompt), params.max_tokens, model),
            ):
                elapsed = time.monotonic() - progresses[0].started
                sent = _to_token_request(request, model, prompt, params, elapsed)
                samples = []
                for progress, one in zip(progresses, parameters.of_samples(sent, n), strict=True):
                    observer.handed_over(len(prompt), params.max_tokens)
                    search = None
                    if stop_texts is not None:
                        search = StopSearch(stop_texts, is_included=request.include_stop_text)
                    answer = Answer(one, model, tokenizer, form, search)
                    samples.append(_Sample(one, answer, progress, observer))
                if n > 1:
                    async with aclosing(merged(list(map(self._deltas, samples)))) as deltas:
                        async for delta in deltas:
                            yield delta
                    return
                # As `_deltas`, without a second generator for each message.
                async with aclosing(self._fleet.generate(samples[0].request)) as events:
                    async for event in events:
                        last = self._delta(event, samples[0])
                        if last is None:
                            continue
                        if last.finish is not None:
                            break
                        yield last
                    else:
                        raise AssertionError(_NO_FINISH)
                yield last

    @contextmanager
    def _queued(
        self, observer: Observer, progresses: Sequence[Progress], num_prompt_tokens: int
    ) -> Iterator[None]:
        """Counts the tokens of a prompt as queued until an engine starts it or the block ends."""
        num_queued = len(progresses) * num_prompt_tokens
        self.queued_prompt_tokens.take(num_queued)
        observer.queued(num_queued)
        for progress in progresses:
            progress.num_queued_tokens = num_prompt_tokens
        try:
            yield
        finally:
            num_queued = sum(progress.num_queued_tokens for progress in progresses)
            self.queued_prompt_tokens.give_back(num_queued)
            observer.queued(-num_queued)

    async def _deltas(self, sample: "_Sample") -> AsyncGenerator[GenerationDelta, None]:
        """Streams one continuation; its engine is free before the last delta is given out."""
        async with aclosing(self._fleet.generate(sample.request)) as events:
            async for event in events:
                delta = self._delta(event, sample)
                if delta is None:
                    continue
                if delta.finish is not None:
                    break
                yield delta
            else:
                raise AssertionError(_NO_FINISH)
        yield delta

    def _delta(self, event: EngineEvent, sample: "_Sample") -> GenerationDelta | None:
        """Counts an event, and returns what it adds to the client's output.

        None if another event follows at once: a message costs much more than what is in it.
        """
        progress = sample.progress
        if progress.num_queued_tokens:
            self.queued_prompt_tokens.give_back(progress.num_queued_tokens)
            sample.observer.queued(-progress.num_queued_tokens)
            progress.num_queued_tokens = 0
        if isinstance(event, Tokens):
            progress.note_tokens(len(event.token_ids), sample.observer)
        delta = sample.answer.delta(event)
        if sample.held is not None:
            delta, sample.held = sample.held.joined(delta), None
        if delta.finish is not None:
            reason = delta.finish.reason
            # An engine stops alike whether or not there are calls in the text.
            progress.outcome = (
                FinishReason.STOP if reason is FinishReason.TOOL_CALLS else reason
            ).value
        elif (isinstance(event, Tokens) and event.is_last) or (
            isinstance(event, Admitted) and event.is_followed
        ):
            sample.held = delta
            return None
        return delta

    async def tokenize(
        self,
        model_name: str,
        prompt: TextPrompt | ChatPrompt,
        *,
        num_bytes: int = 0,
        caller: Caller | None = None,
    ) -> "array[int]":
        """Returns the token IDs that `generate` would start from, at most the model's length.

        Args:
            model_name: The model; empty means the only one served.
            prompt: The prompt to tokenize.
            num_bytes: Size of the request message.
            caller: Who asks; None if no API keys are needed.

        Raises:
            RequestError: As `generate`.
        """
        with self._slots.taken(num_bytes), admitted(caller):
            model = self._model_info(model_name, caller)
            limits.check_prompt(prompt, model, self._bounds.max_prompt_bytes)
            tokenizer = await self._tokenizers.get(model)
            token_ids, _ = await self._encoder.encode(tokenizer, prompt, model)
            limits.check_num_tokens(len(token_ids), model)
            return token_ids

    async def detokenize(
        self,
        model_name: str,
        prompt: TokenPrompt,
        *,
        skip_special_tokens: bool,
        num_bytes: int = 0,
        caller: Caller | None = None,
    ) -> str:
        """Returns the text of token IDs, at most as many as the model's length.

        Args:
            model_name: The model; empty means the only one served.
            prompt: The tokens to decode.
            skip_special_tokens: Whether special tokens produce no text.
            num_bytes: Size of the request message.
            caller: Who asks; None if no API keys are needed.

        Raises:
            RequestError: As `generate`.
        """
        with self._slots.taken(num_bytes), admitted(caller):
            model = self._model_info(model_name, caller)
            field, token_ids = prompt.field, prompt.token_ids
            if len(token_ids) > model.max_model_len:
                raise InvalidRequest(
                    f"{field} has {len(token_ids)} entries, outside 0 to {model.max_model_len}",
                    {
                        "field": field,
                        "value": str(len(token_ids)),
                        "bounds": f"0 to {model.max_model_len}",
                    },
                )
            limits.check_token_ids(field, token_ids, model)
            tokenizer = await self._tokenizers.get(model)
            return await self._tokenizers.run(
                partial(tokenizer.decode, token_ids, skip_special_tokens=skip_special_tokens)
            )

    async def token_names(self, model_name: str, token_ids: Sequence[int]) -> list[str]:
        """Returns tokens that `tokenize` returned as the model's vocabulary writes them.

        Raises:
            RequestError: As `generate`.
        """
        with self._slots.taken(0):
            tokenizer = await self._tokenizers.get(self._fleet.model_info(model_name))
            return await self._tokenizers.run(tokenizer.names, token_ids)

    def drain(self) -> None:
        """Refuses all new requests from now on."""
        self._slots.drain()

    async def wait_idle(self) -> None:
        """Waits until no request is in progress."""
        await self._slots.wait_idle()

    def _find(self, name: str, caller: Caller | None) -> ModelInfo | RequestError:
        """Describes a model, or says why it cannot be had."""
        try:
            return self._model_info(name, caller)
        except RequestError as error:
            return error

    def _model_info(self, name: str, caller: Caller | None) -> ModelInfo:
        if caller is None:
            return self._fleet.model_info(name)
        if name:
            caller.check_model(name)
        try:
            model = self._fleet.model_info(name)
        except UnknownModel:
            # Its message names all models that are served.
            raise caller.unknown_model(name) from None
        caller.check_model(model.name)
        return model

    def _observer(self, found: ModelInfo | RequestError, name: str) -> RequestObserver:
        """Returns whom to tell of a request, which counts with its model if that is served."""
        if isinstance(found, ModelInfo):
            return self._observers.of_model(found.name)
        return self._observers.of_request(name)

    async def _tokenizer(self, model: ModelInfo, request: GenerationRequest) -> Tokenizer | None:
        try:
            return await self._tokenizers.get(model)
        except NoTokenizer as error:
            if request.stop or request.bad_words:
                field = "stop" if request.stop else "bad_words"
                other = "stop_token_ids" if request.stop else "logit_bias"
                raise NoTokenizer(
                    f"{field} needs a tokenizer, use {other} instead: {error}",
                    {"field": field, "model": model.name},
                ) from error
            if isinstance(request.prompt, TokenPrompt):
                return None
            raise
        except RequestError:
            # A prompt of token IDs needs no tokenizer: without one, the answer has no text.
            if isinstance(request.prompt, TokenPrompt) and not (request.stop or request.bad_words):
                return None
            raise

    async def _resolve(
        self, request: GenerationRequest, model: ModelInfo, tokenizer: Tokenizer | None
    ) -> SamplingParams:
        """Returns the parameters for engines, which know neither words nor the model's defaults."""
        params = with_defaults(request.sampling_params, model.default_sampling_params)
        if not request.bad_words or tokenizer is None:
            return params
        sequences = await self._tokenizers.run(
            parameters.bad_sequences, request.bad_words, tokenizer
        )
        return replace(params, bad_words_token_ids=sequences)

    async def _stop_texts(self, texts: tuple[str, ...]) -> StopTexts | None:
        if not texts:
            return None
        if sum(map(len, texts)) <= _MAX_SHORT_STOPS:
            return StopTexts(texts)
        return await self._tokenizers.run(StopTexts, texts)


def _known(found: ModelInfo | RequestError) -> ModelInfo:
    if isinstance(found, RequestError):
        raise found
    return found


def _to_token_request(
    request: GenerationRequest,
    model: ModelInfo,
    prompt: "array[int]",
    params: SamplingParams,
    elapsed: float,
) -> TokenRequest:
    timeout = request.timeout
    return TokenRequest(
        request_id=request.request_id or secrets.token_hex(16),
        model=model.name,
        model_info=model,
        prompt_token_ids=prompt,
        sampling_params=params,
        priority=request.priority,
        cache_salt=(
            request.cache_salt
            if request.caller is None
            else request.caller.cache_salt(request.cache_salt)
        ),
        timeout=None if timeout is None else max(0.0, timeout - elapsed),
        pipeline_seconds=elapsed,
        traceparent=request.traceparent,
        tracestate=request.tracestate,
    )
