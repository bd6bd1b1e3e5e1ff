"""The messages of the router's contract to its own types and back."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from google.protobuf import duration_pb2

from protos.pagestream.router.v1 import router_pb2
from protos.wire import sampling_params
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from protos.wire.token_ids import add_token_ids, read_token_ids
from router.access.caller import Caller
from router.errors import InvalidRequest
from router.placement.policy import Cost
from router.request.trace_context import trace_context
from router.server.chat import to_chat_prompt, to_tool_call_deltas
from router.types.engine_events import FinishReason
from router.types.engine_state import EngineSnapshot, EngineState, ModelSnapshot
from router.types.generation import (
    Admission,
    Finish,
    GenerationDelta,
    GenerationRequest,
    ScoredTokens,
)
from router.types.prompts import ChatPrompt, Prompt, TextPrompt, TokenPrompt

if TYPE_CHECKING:
    from array import array

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_MAX_COST_SECONDS = 1e9
"""Above it, figures of the engines are nonsense; a Duration holds some hundred times as much."""

Metadata = Iterable[tuple[str, str | bytes]]

_FINISH_REASONS = {
    FinishReason.STOP: router_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: router_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: router_pb2.FINISH_REASON_TOOL_CALLS,
}
_ENGINE_STATES = {
    EngineState.CONNECTING: router_pb2.ENGINE_STATE_CONNECTING,
    EngineState.SERVING: router_pb2.ENGINE_STATE_SERVING,
    EngineState.DRAINING: router_pb2.ENGINE_STATE_DRAINING,
    EngineState.UNAVAILABLE: router_pb2.ENGINE_STATE_UNAVAILABLE,
}


def to_generation_request(
    request: router_pb2.GenerateRequest,
    metadata: Metadata,
    timeout: float | None,
    caller: Caller | None = None,
) -> GenerationRequest:
    """Reads a request, with the trace context and the deadline that its call brought along.

    Raises:
        InvalidRequest: There is no input, or what a chat holds as JSON is none.
    """
    traceparent, tracestate = trace_context(metadata)
    return GenerationRequest(
        request_id=request.request_id,
        model=request.model,
        prompt=_to_prompt(request),
        sampling_params=sampling_params.from_message(request.sampling_params),
        stop=tuple(request.sampling_params.stop),
        include_stop_text=request.sampling_params.include_stop_text,
        bad_words=tuple(request.sampling_params.bad_words),
        n=request.sampling_params.n if request.sampling_params.HasField("n") else None,
        priority=request.priority,
        cache_salt=request.cache_salt,
        timeout=timeout,
        traceparent=traceparent,
        tracestate=tracestate,
        num_bytes=request.ByteSize(),
        caller=caller,
    )


def to_token_ids(request: router_pb2.DetokenizeRequest) -> "array[int]":
    """Reads what to turn into text."""
    return read_token_ids(request, "token_ids")


def to_tokenize_prompt(request: router_pb2.TokenizeRequest) -> TextPrompt | ChatPrompt:
    """Reads what to tokenize.

    Raises:
        InvalidRequest: There is no input, or what a chat holds as JSON is none.
    """
    prompt = _to_prompt(request)
    assert not isinstance(prompt, TokenPrompt), "TokenizeRequest has no token_ids"
    return prompt


def _to_prompt(request: router_pb2.GenerateRequest | router_pb2.TokenizeRequest) -> Prompt:
    match request.WhichOneof("input"):
        case "text":
            return TextPrompt(text=request.text)
        case "chat":
            return to_chat_prompt(request.chat)
        case "token_ids" if isinstance(request, router_pb2.GenerateRequest):
            return TokenPrompt(token_ids=read_token_ids(request.token_ids, "ids"))
        case _:
            fields = ", ".join(field.name for field in request.DESCRIPTOR.oneofs[0].fields)
            raise InvalidRequest(
                f"input is not set; it is one of {fields}",
                {"field": "input"},
                reason=Reason.EMPTY_PROMPT,
            )


def to_generate_response(delta: GenerationDelta) -> router_pb2.GenerateResponse:
    """Writes what is new of a request."""
    # Most messages have nothing else, and each further argument takes time.
    response = router_pb2.GenerateResponse(text=delta.text, token_ids=delta.token_ids)
    if delta.admission is not None:
        response.admission.CopyFrom(_to_admission(delta.admission))
    if delta.finish is not None:
        response.finish.CopyFrom(_to_finish(delta.finish))
    if delta.index:
        response.index = delta.index
    if delta.reasoning:
        response.reasoning_text = delta.reasoning
    if delta.tool_calls:
        response.tool_calls.extend(to_tool_call_deltas(delta.tool_calls))
    if delta.logprobs is not None:
        _add_logprobs(response.logprobs, delta.logprobs)
    if delta.prompt_logprobs is not None:
        _add_logprobs(response.prompt_logprobs, delta.prompt_logprobs)
    return response


def _add_logprobs(
    field: "RepeatedCompositeFieldContainer[router_pb2.TokenLogprob]", scored: ScoredTokens
) -> None:
    """Writes the logprobs of tokens; about a microsecond for each candidate."""
    texts, logprobs = scored.texts, scored.logprobs
    candidate = router_pb2.Candidate
    num_top, start = logprobs.num_top, 0
    for token_id, logprob in zip(scored.token_ids, logprobs.logprobs, strict=True):
        text, raw = texts[token_id]
        end = start + num_top
        token = candidate(token_id=token_id, logprob=logprob, text=text, raw=raw)
        entry = field.add(token=token)
        for top_id, top_logprob in zip(
            logprobs.top_token_ids[start:end], logprobs.top_logprobs[start:end], strict=True
        ):
            text, raw = texts[top_id]
            entry.top.add(token_id=top_id, logprob=top_logprob, text=text, raw=raw)
        start = end


def _to_admission(admission: Admission) -> router_pb2.Admission:
    return router_pb2.Admission(
        request_id=admission.request_id,
        model=admission.model,
        engine=admission.engine,
        prompt_token_count=admission.num_prompt_tokens,
        cached_token_count=admission.num_cached_tokens,
        seed=admission.seed,
    )


def _to_finish(finish: Finish) -> router_pb2.Finish:
    return router_pb2.Finish(
        reason=_FINISH_REASONS[finish.reason],
        stop_token_id=finish.stop_token_id,
        prompt_token_count=finish.num_prompt_tokens,
        completion_token_count=finish.num_completion_tokens,
        stop_text=finish.stop_text,
    )


def to_tokenize_response(token_ids: "array[int]") -> router_pb2.TokenizeResponse:
    """Writes token IDs."""
    return add_token_ids(router_pb2.TokenizeResponse(), "token_ids", token_ids)


def to_detokenize_response(text: str) -> router_pb2.DetokenizeResponse:
    """Writes text."""
    return router_pb2.DetokenizeResponse(text=text)


def to_list_models_response(models: Iterable[ModelSnapshot]) -> router_pb2.ListModelsResponse:
    """Writes the models, by name."""
    return router_pb2.ListModelsResponse(
        models=[
            router_pb2.Model(
                name=model.info.name,
                max_model_length_tokens=model.info.max_model_len,
                vocabulary_size=model.info.vocab_size,
                serving_engine_count=model.num_serving_engines,
                model_fingerprint=model.info.fingerprint,
                default_sampling_params=_to_defaults(model.info.default_sampling_params),
            )
            for model in sorted(models, key=lambda model: model.info.name)
        ]
    )


def _to_defaults(params: SamplingParams) -> router_pb2.SamplingParams | None:
    fields = sampling_params.to_fields(params)
    return router_pb2.SamplingParams(**fields) if fields else None


def to_list_engines_response(
    engines: Iterable[EngineSnapshot], costs: Mapping[str, Cost]
) -> router_pb2.ListEnginesResponse:
    """Writes the engines, by address, with the costs of those that have one."""
    ordered = sorted(engines, key=lambda engine: engine.address)
    return router_pb2.ListEnginesResponse(
        engines=[_to_engine(engine, costs.get(engine.address)) for engine in ordered]
    )


def _to_engine(engine: EngineSnapshot, cost: Cost | None) -> router_pb2.Engine:
    load = engine.load
    return router_pb2.Engine(
        address=engine.address,
        model=engine.model.name if engine.model else "",
        state=_ENGINE_STATES[engine.state],
        running_count=load.num_running,
        waiting_count=load.num_waiting,
        waiting_prefill_token_count=load.num_waiting_prefill_tokens,
        free_block_count=load.num_free_blocks,
        total_block_count=load.num_blocks,
        indexed_block_count=engine.num_indexed_blocks,
        in_flight_count=engine.num_in_flight,
        prefill_tokens_per_second=load.prefill_tokens_per_second,
        decode_tokens_per_second=load.decode_tokens_per_second,
        detail=engine.detail,
        reference_cost=None if cost is None else _to_cost(cost),
    )


def _to_cost(cost: Cost) -> router_pb2.PlacementCost:
    return router_pb2.PlacementCost(
        wait=_to_duration(cost.wait),
        prefill=_to_duration(cost.prefill),
        decode=_to_duration(cost.decode),
    )


def _to_duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(1e9 * min(seconds, _MAX_COST_SECONDS)))
    return duration
