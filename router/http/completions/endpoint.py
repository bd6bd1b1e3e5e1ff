"""POST /v1/completions, in the form of OpenAI's API with vLLM's further fields."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import pydantic
from starlette.requests import Request
from starlette.responses import Response

from protos.wire.limits import MAX_SAMPLES
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from router.access.caller import Caller
from router.errors import InvalidRequest
from router.http.answers import Deltas, EventStream, read_answer
from router.http.body import parse_body, read_body
from router.http.completions.answer import (
    CompletionAnswer,
    CompletionForm,
    CompletionStream,
)
from router.http.completions.prompts import PROMPTS_SCHEMA, read_prompts
from router.http.errors import must_be
from router.http.models import Endpoint
from router.http.outlet import outlet_of
from router.http.sampling import Int32, SamplingFields, StreamOptions
from router.http.service import Service
from router.request.pipeline import Pipeline
from router.request.samples import merged
from router.types.generation import GenerationDelta, GenerationRequest
from router.types.prompts import TextPrompt, TokenPrompt

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's, and vLLM's."""
_MAX_FINGERPRINT = 16
_MAX_REPEATED = 1 << 18
"""Characters or tokens of prompts that are sent with several choices of each."""
_SERVED = (
    ("suffix", "", "empty: a text between two others is not generated here"),
    ("skip_special_tokens", True, "true: special tokens have no text here"),
    ("use_beam_search", False, "false: there is no beam search here"),
)
"""Fields that have one value only, and why."""

_wrong = partial(must_be, reason=Reason.BAD_SAMPLING_PARAMS)

Count = Annotated[int, pydantic.Field(ge=0, lt=2**31)]


class CompletionFields(SamplingFields):
    """The body of a request."""

    prompt: Annotated[Any, pydantic.WithJsonSchema(PROMPTS_SCHEMA)]
    max_tokens: Count | None = None
    logprobs: Count | None = None
    echo: bool | None = None
    best_of: Int32 | None = None
    suffix: str | None = None
    stream_options: StreamOptions | None = None
    # vLLM's
    prompt_logprobs: Count | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # Served with this value only
    skip_special_tokens: bool | None = None
    use_beam_search: bool | None = None
    # Known, and of no effect here: there are no special tokens in the text
    spaces_between_special_tokens: bool | None = None

    @property
    def num_choices(self) -> int:
        """Choices of each prompt."""
        return 1 if self.n is None else self.n

    @property
    def scores_prompt(self) -> bool:
        """Whether logprobs of the prompt are needed for the echo."""
        return bool(self.echo) and (self.logprobs is not None or self.max_tokens == 0)

    def check(self) -> None:
        """Refuses fields that contradict each other.

        Raises:
            InvalidRequest: The error names the field.
        """
        if not 1 <= self.num_choices <= MAX_SAMPLES:
            raise _wrong("n", self.num_choices, f"1 to {MAX_SAMPLES}")
        for name, value, rule in _SERVED:
            if getattr(self, name) not in (None, value):
                raise _wrong(name, getattr(self, name), rule)
        if self.best_of not in (None, 1, self.num_choices):
            raise _wrong("best_of", self.best_of, "n or 1: no choice is left out here")
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "set", "unset unless stream is true")
        if self.prompt_logprobs is not None and self.stream:
            raise _wrong("prompt_logprobs", self.prompt_logprobs, "unset if stream is true")

    def completion_params(self) -> SamplingParams:
        """Returns the sampling parameters, not yet checked."""
        max_tokens = _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        params = self.params(max_tokens=max_tokens, logprobs=self.logprobs)
        if not self.scores_prompt:
            return params
        most = max(self.logprobs or 0, self.prompt_logprobs or 0)
        return replace(params, prompt_logprobs=most)

    def form(self, service: Service, texts: Sequence[str], request_id: str) -> CompletionForm:
        """Returns the form of the answer, whose choices begin with a text for each prompt."""
        infos = [model.info for model in service.models() if self.model in ("", model.info.name)]
        options = self.stream_options
        return CompletionForm(
            completion_id=f"cmpl-{request_id}",
            created=int(time.time()),
            model=infos[0].name if infos else self.model,
            fingerprint=infos[0].fingerprint[:_MAX_FINGERPRINT] if infos else "",
            n=self.num_choices,
            texts=texts,
            echoes=bool(self.echo),
            num_logprobs=self.logprobs,
            num_prompt_logprobs=self.prompt_logprobs,
            shows_token_ids=bool(self.return_token_ids),
            tokens_as_ids=bool(self.return_tokens_as_token_ids),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            has_usage=options is not None and bool(options.include_usage),
            has_usage_always=options is not None and bool(options.continuous_usage_stats),
        )


def completion_endpoints(service: Service) -> dict[str, Endpoint]:
    """Returns the endpoint by its path, for POST."""
    pipeline = service.pipeline

    async def complete(request: Request) -> Response:
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(CompletionFields, body)
        fields.check()
        prompts = read_prompts(
            fields.prompt, add_special_tokens=fields.add_special_tokens is not False
        )
        _check_number(len(prompts), fields.num_choices, pipeline.max_requests)
        texts = [""] * len(prompts)
        if fields.echo or fields.return_token_ids:
            _check_repetition(prompts, fields.num_choices)
        if fields.echo:
            async with outlet_of(request.scope).until_client_leaves():
                caller = outlet_of(request.scope).caller
                texts = [
                    await _echo(pipeline, fields.model, one, len(body), caller) for one in prompts
                ]
        first = fields.generation(
            request, prompts[0], fields.completion_params(), len(body) // len(prompts)
        )
        form = fields.form(service, texts, first.request_id)
        deltas = _deltas(pipeline, [replace(first, prompt=prompt) for prompt in prompts])
        if fields.stream:
            return EventStream(request, service, deltas, CompletionStream(form))
        answer = CompletionAnswer(form)
        await read_answer(request, deltas, answer.read)
        return Response(answer.to_json(), media_type="application/json")

    return {"/v1/completions": complete}


async def _echo(
    pipeline: Pipeline,
    model: str,
    prompt: TextPrompt | TokenPrompt,
    num_bytes: int,
    caller: Caller | None,
) -> str:
    """Returns the text of a prompt."""
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return await pipeline.detokenize(
        model,
        prompt,
        skip_special_tokens=False,
        num_bytes=num_bytes,
        caller=caller,
    )


def _deltas(pipeline: Pipeline, requests: Sequence[GenerationRequest]) -> Deltas:
    """Returns the continuations of all prompts, those of each behind those of the one before."""
    if len(requests) == 1:
        return pipeline.generate(requests[0])
    return merged(
        [
            _numbered(pipeline.generate(request), index * (request.n or 1))
            for index, request in enumerate(requests)
        ]
    )


async def _numbered(deltas: Deltas, first: int) -> AsyncGenerator[GenerationDelta, None]:
    async with aclosing(deltas):
        async for delta in deltas:
            yield replace(delta, index=first + delta.index)


def _check_number(num_prompts: int, n: int, max_requests: int) -> None:
    most = min(MAX_SAMPLES, max_requests)
    if n * num_prompts > most:
        raise InvalidRequest(
            f"prompt has {num_prompts} prompts, with n {n} that is {n * num_prompts} choices, "
            f"outside 1 to {most}",
            {"field": "prompt", "value": str(num_prompts), "bounds": f"1 to {most} choices"},
            reason=Reason.BAD_SAMPLING_PARAMS,
        )


def _check_repetition(prompts: Sequence[TextPrompt | TokenPrompt], n: int) -> None:
    """Refuses to send much of a prompt again and again, which takes no work of an engine."""
    sizes = [
        len(prompt.text) if isinstance(prompt, TextPrompt) else len(prompt.token_ids)
        for prompt in prompts
    ]
    size = n * sum(sizes)
    if n > 1 and size > _MAX_REPEATED:
        rule = f"at most {_MAX_REPEATED}; leave out echo and return_token_ids, or n"
        raise _wrong("n", f"{n}, with which {size} characters or tokens of prompts are sent", rule)
