"""In-process use of the service's core, for offline batches and benchmarks."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.limits import Limits
from engine_service.core.logprobs import StepLogprobs
from engine_service.core.types import (
    FinishReason,
    Request,
    StepOutput,
    int32_array,
)
from engine_service.errors import InvalidRequest, StartupError, unusable_grammar
from engine_service.installation import check_installation
from protos.wire.limits import MAX_SAMPLES
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar as Grammar
from protos.wire.sampling_params import SamplingParams as SamplingParams
from protos.wire.sampling_params import with_defaults

if TYPE_CHECKING:
    from engine_service.worker.worker import PendingStep

_OPTION_GROUPS = (ModelOptions, CacheOptions, SchedulerOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """How likely one token was, by the model's own logits: natural logarithms of probabilities."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens at its position and their logprobs, from the likeliest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One continuation of one prompt."""

    token_ids: list[int]
    """The generated tokens, including a stop token."""
    finish_reason: FinishReason
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    sample_index: int
    """Its number among the continuations of its prompt."""
    logprobs: list[TokenLogprobs] | None
    """Of each generated token; None unless `SamplingParams.logprobs` is set."""
    prompt_logprobs: list[TokenLogprobs | None] | None
    """Of each token of the prompt, but None of the first, which follows nothing; None unless
    `SamplingParams.prompt_logprobs` is set."""


@dataclass(slots=True, kw_only=True)
class _Progress:
    """A request in progress."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])


class LLM:
    """One model in this process. Not thread-safe.

    Use it as a context manager, or call `close`, to release the model's memory.
    """

    def __init__(self, model: str, **options: Any) -> None:  # noqa: ANN401 (as the fields say)
        """Loads a model.

        Args:
            model: Folder of a Hugging Face checkpoint, or its hub ID.
            options: Fields of `ModelOptions`, `CacheOptions` and `SchedulerOptions`.

        Raises:
            StartupError: An option is wrong, a package is missing, or the model cannot be served.
        """
        check_installation()
        # Imports torch; the check above reports clearly if it is missing.
        from engine_service.worker.executor import start_executor

        model_options, cache, scheduler = _parse_options({"model": model, **options})
        executor, self.info = start_executor(model_options, cache, scheduler)
        self._executor = executor
        self._core: EngineCore[PendingStep] | None = EngineCore(
            self.info,
            scheduler,
            executor,
            enable_prefix_caching=cache.enable_prefix_caching,
        )
        self._request_ids = itertools.count()
        self.num_preemptions = 0
        """Total preemptions: times that a sequence released its blocks and started over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the model's memory. A second call does nothing."""
        core, self._core = self._core, None
        if core is not None:
            core.close()

    def generate(
        self,
        prompt_token_ids: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        *,
        n: int = 1,
        use_tqdm: bool = True,
    ) -> list[Completion]:
        """Continues prompts, all at once.

        Blocks until the last one is done. An exception that interrupts it, such as
        KeyboardInterrupt, closes this object.

        Four continuations of a prompt, and how likely each of their tokens was:

            params = SamplingParams(max_tokens=32, seed=7, logprobs=5)
            for completion in llm.generate([[9707, 11]], params, n=4):
                print([token.logprob for token in completion.logprobs])

        The logprobs of a text, without a continuation:

            params = SamplingParams(max_tokens=0, prompt_logprobs=0)
            (completion,) = llm.generate([[9707, 11, 1879]], params)
            print(sum(token.logprob for token in completion.prompt_logprobs[1:]))

        Args:
            prompt_token_ids: Token IDs of each prompt.
            sampling_params: One for all prompts, or one for each. The defaults of the model's
                authors apply where a parameter is unset.
            n: Continuations of each prompt, from 1 to 128. They share the prompt's computation,
                except with `prompt_logprobs`.
            use_tqdm: Whether to show a progress bar on stderr.

        Returns:
            n completions per prompt: those of the first, in order of their `sample_index`, then
            those of the next.

        Raises:
            InvalidRequest: A prompt or parameter is invalid; nothing was computed.
            RequestError: The model's logits were NaN or infinite.
        """
        if self._core is None:
            raise RuntimeError("this LLM is closed; create a new one")
        requests = self._make_requests(prompt_token_ids, sampling_params, n)
        try:
            return self._run(self._core, requests, use_tqdm=use_tqdm)
        except BaseException:
            self.close()
            raise

    def _make_requests(
        self,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        n: int,
    ) -> list[Request]:
        if not isinstance(n, int) or not 1 <= n <= MAX_SAMPLES:
            raise _bad_param("n", n, f"1 to {MAX_SAMPLES}")
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(prompts)
        if len(sampling_params) != len(prompts):
            raise InvalidRequest(
                f"sampling_params has {len(sampling_params)} entries for {len(prompts)} prompts"
            )
        limits = Limits.from_info(self.info)
        tried: set[Grammar] = set()
        requests = []
        for index, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            if n > 1 and params.sample_index is not None:
                raise _bad_param("sample_index", params.sample_index, f"unset, as n is {n}")
            try:
                request = Request(
                    request_id=next(self._request_ids),
                    prompt_token_ids=int32_array(list(prompt)),
                    sampling_params=with_defaults(params, self.info.default_sampling_params),
                )
            except (TypeError, OverflowError) as error:
                raise InvalidRequest(
                    f"prompt {index}: token IDs must be integers from 0 to "
                    f"{self.info.vocab_size - 1}: {error}",
                    reason=Reason.TOKEN_OUT_OF_RANGE,
                ) from error
            try:
                limits.check(request)
                self._try_grammar(params, tried)
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"prompt {index}: {error.message}", error.metadata, reason=error.reason
                ) from error
            requests += self._samples(request, n) if n > 1 else [request]
        return requests

    def _try_grammar(self, params: SamplingParams, tried: set[Grammar]) -> None:
        grammar = params.grammar
        if grammar is None or grammar in tried:
            return
        # Not before the installation is checked.
        from engine_service.grammar.compiler import BadGrammar

        try:
            self._executor.try_grammar(grammar)
        except BadGrammar as error:
            raise unusable_grammar(grammar.form, str(error)) from error
        tried.add(grammar)

    def _samples(self, request: Request, n: int) -> list[Request]:
        """Returns a request's continuations."""
        return [
            dataclasses.replace(
                request,
                request_id=next(self._request_ids),
                sampling_params=dataclasses.replace(request.sampling_params, sample_index=index),
            )
            for index in range(n)
        ]

    def _run(
        self, core: "EngineCore[PendingStep]", requests: list[Request], *, use_tqdm: bool
    ) -> list[Completion]:
        progress = {request.request_id: _Progress(request=request) for request in requests}
        num_tokens, started_at = 0, time.perf_counter()
        for request in requests:
            core.add(request)
        # Not before the installation is checked.
        from tqdm import tqdm

        with tqdm(
            total=len(requests), desc="Generating", unit="prompt", disable=not use_tqdm
        ) as bar:
            while core.has_work:
                output = core.step()
                _take_in(output, progress)
                self.num_preemptions += output.stats.num_preemptions
                num_tokens += len(output.token_ids)
                if output.finishes:
                    rate = num_tokens / (time.perf_counter() - started_at)
                    bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
                    bar.update(len(output.finishes))
        return [_complete(progress[request.request_id]) for request in requests]


def _parse_options(
    options: dict[str, Any],
) -> tuple[ModelOptions, CacheOptions, SchedulerOptions]:
    groups: list[Any] = []
    for group in _OPTION_GROUPS:
        names = [option.name for option in dataclasses.fields(group)]
        groups.append(group(**{name: options.pop(name) for name in names if name in options}))
    if options:
        raise StartupError(f"unknown options: {', '.join(sorted(options))}")
    model, cache, scheduler = groups
    return model, cache, scheduler


def _take_in(output: StepOutput, progress: dict[int, _Progress]) -> None:
    for admission in output.admissions:
        progress[admission.request_id].num_cached_tokens = admission.num_cached_tokens
    begin = 0
    for request_id, count in zip(output.request_ids, output.token_counts, strict=True):
        progress[request_id].token_ids += output.token_ids[begin : begin + count]
        begin += count
    _take_in_logprobs(output, progress)
    for failure in output.failures:
        raise failure.error
    for finish in output.finishes:
        progress[finish.request_id].finish_reason = finish.reason


def _take_in_logprobs(output: StepOutput, progress: dict[int, _Progress]) -> None:
    for request_id, position, logprobs in output.prompt_logprobs or ():
        prompt = progress[request_id].request.prompt_token_ids
        token_ids = prompt[position : position + len(logprobs)]
        progress[request_id].prompt_logprobs += _readable(token_ids, logprobs)
    for request_id, _, logprobs in output.logprobs or ():
        generated = progress[request_id].token_ids
        progress[request_id].logprobs += _readable(generated[-len(logprobs) :], logprobs)


def _readable(token_ids: Sequence[int], logprobs: StepLogprobs) -> list[TokenLogprobs]:
    width = logprobs.width
    top = list(zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True))
    return [
        TokenLogprobs(token_id=token_id, logprob=logprob, top=top[row * width : (row + 1) * width])
        for row, (token_id, logprob) in enumerate(zip(token_ids, logprobs.logprobs, strict=True))
    ]


def _bad_param(field: str, value: object, bounds: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is {value}, must be {bounds}",
        {"field": field, "value": str(value), "bounds": bounds},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )


def _complete(progress: _Progress) -> Completion:
    assert progress.finish_reason is not None, "the core has no work, yet a request is open"
    params = progress.request.sampling_params
    return Completion(
        token_ids=progress.token_ids,
        finish_reason=progress.finish_reason,
        num_cached_tokens=progress.num_cached_tokens,
        sample_index=params.sample_index or 0,
        logprobs=None if params.logprobs is None else progress.logprobs,
        prompt_logprobs=None if params.prompt_logprobs is None else progress.prompt_logprobs,
    )
