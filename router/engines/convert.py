"""Converts between the messages of the engine's contract and the router's own types."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.sampling_params import (
    ALL_PARAMS,
    BASIC_PARAMS,
    DEFAULT_PARAMS,
    SamplingParams,
    is_neutral,
    plain_value,
    to_fields,
)
from protos.wire.status import ErrorStatus, Reason, code_number, cut, error_status, unpack
from protos.wire.token_ids import add_token_ids
from router.errors import DOMAIN, EngineError
from router.types.engine_events import Finished, FinishReason, TokenRequest
from router.types.engine_state import CacheUpdate, EngineLoad, EngineState, ModelInfo

_MAX_COUNT = 2**20
"""Upper bound of requests on one engine; no engine has as many."""
_MAX_PREFILL_TOKENS = 2**40
_MAX_BLOCKS = 2**31 - 1
_MIN_RATE = 0.01
_MAX_RATE = 1e9
"""Tokens per second of the slowest and the fastest machine."""

_STATES = {
    engine_pb2.ENGINE_STATE_SERVING: EngineState.SERVING,
    engine_pb2.ENGINE_STATE_DRAINING: EngineState.DRAINING,
}
_REASONS = {
    engine_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    engine_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


def status_of(error: grpc.aio.AioRpcError) -> ErrorStatus:
    """Returns the status of a failed call; our own details are in its trailers. Never raises."""
    try:
        rich = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        # The call was cut off while it ended, so that the details are missing or do not match.
        rich = None
    if rich is not None:
        return unpack(rich.code, rich.message, rich.details)
    name = error.code().name
    message = cut(f"{name}: {error.details() or 'no detail'}")
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return error_status(Reason.ENGINE_FAILED, message, domain=DOMAIN)
    return unpack(code_number(error.code()), message, ())


def to_submission(handle: int, request: TokenRequest, model: ModelInfo) -> engine_pb2.Submission:
    """Returns the submission of a request to an engine with this model.

    Raises:
        ValueError: A value does not fit its field.
    """
    submission = engine_pb2.Submission(
        handle=handle,
        # A message would be copied.
        request={
            "request_id": request.request_id,
            "sampling_params": _fields(request.sampling_params, model),
            "priority": request.priority,
            "cache_salt": request.cache_salt,
        },
        traceparent=request.traceparent,
        tracestate=request.tracestate,
    )
    message = submission.request
    add_token_ids(message, "prompt_token_ids", request.prompt_token_ids)
    add_token_ids(message, "resume_token_ids", request.resume_token_ids)
    if request.timeout is not None:
        submission.timeout.FromNanoseconds(max(0, int(request.timeout * 1e9)))
    return submission


def _fields(params: SamplingParams, model: ModelInfo) -> dict[str, Any]:
    """Returns the parameters as fields that mean to this engine what they mean to the router.

    An older engine refuses a field that it does not know even if the value changes nothing. An
    engine with defaults of its own would use them for what the request leaves unset.
    """
    fields = to_fields(params)
    if not fields.keys() <= model.supported_params:
        for name in fields.keys() - model.supported_params:
            if is_neutral(params, name):
                del fields[name]
    defaults = model.default_sampling_params
    for name in DEFAULT_PARAMS:
        if getattr(defaults, name) is not None and name not in fields:
            fields[name] = plain_value(name)
    return fields


def default_params(message: engine_pb2.SamplingParams) -> SamplingParams:
    """Returns the model's own defaults; other parameters have none, and are left out."""
    names = [name for name in DEFAULT_PARAMS if message.HasField(name)]
    return SamplingParams(**{name: getattr(message, name) for name in names})


def to_model(response: engine_pb2.GetModelInfoResponse) -> ModelInfo:
    """Returns an engine's model information."""
    return ModelInfo(
        name=response.model_name,
        architecture=response.architecture,
        fingerprint=response.model_fingerprint,
        vocab_size=response.vocabulary_size,
        max_model_len=response.max_model_length_tokens,
        block_size=response.block_size_tokens,
        block_hash_scheme=response.block_hash_scheme,
        eos_token_ids=frozenset(response.eos_token_ids),
        tokenizer_sha256=response.tokenizer_sha256,
        epoch=response.epoch,
        num_blocks=response.total_block_count,
        max_num_seqs=response.max_running_request_count,
        max_num_batched_tokens=response.max_batched_token_count,
        # Names of a newer contract mean nothing here.
        supported_params=BASIC_PARAMS | ALL_PARAMS.intersection(response.supported_sampling_params),
        default_sampling_params=default_params(response.default_sampling_params),
        max_logprobs=response.max_logprob_count,
    )


def to_load(load: engine_pb2.EngineLoad) -> EngineLoad:
    """Returns an engine's load. An unknown state counts as unavailable, an absurd rate as 0.

    Counts and rates are bounded, so that costs computed from them stay finite.
    """
    return EngineLoad(
        state=_STATES.get(load.state, EngineState.UNAVAILABLE),
        num_running=_count(load.running_count),
        num_waiting=_count(load.waiting_count),
        num_waiting_prefill_tokens=_count(load.waiting_prefill_token_count, _MAX_PREFILL_TOKENS),
        num_free_blocks=_count(load.free_block_count, _MAX_BLOCKS),
        num_blocks=_count(load.total_block_count, _MAX_BLOCKS),
        prefill_tokens_per_second=_rate(load.prefill_tokens_per_second),
        decode_tokens_per_second=_rate(load.decode_tokens_per_second),
    )


def _count(value: int, most: int = _MAX_COUNT) -> int:
    return min(max(0, value), most)


def _rate(value: float) -> float:
    """Returns a rate usable for costs; one that no engine reaches counts as unmeasured."""
    return value if _MIN_RATE <= value <= _MAX_RATE else 0.0


def to_cache_update(message: engine_pb2.WatchCacheResponse) -> CacheUpdate:
    """Returns one change of an engine's prefix cache."""
    if message.HasField("snapshot"):
        snapshot = message.snapshot
        return CacheUpdate(
            epoch=message.epoch,
            sequence_number=message.sequence_number,
            stored=snapshot.block_hashes,
            is_snapshot=True,
            is_first=snapshot.first,
            is_last=snapshot.last,
            part_number=snapshot.part_number,
        )
    return CacheUpdate(
        epoch=message.epoch,
        sequence_number=message.sequence_number,
        stored=message.delta.stored_block_hashes,
        removed=message.delta.removed_block_hashes,
    )


def to_outcome(address: str, finish: engine_pb2.Finish) -> Finished | EngineError:
    """Returns how a request ended."""
    reason = _REASONS.get(finish.reason)
    if reason is None:
        message = f"engine {address} ended the request with the unknown reason {finish.reason}"
        return EngineError(error_status(Reason.INTERNAL, message, domain=DOMAIN))
    stop = finish.stop_token_id if finish.HasField("stop_token_id") else None
    return Finished(reason=reason, stop_token_id=stop)


def to_failure(error: engine_pb2.RequestError) -> EngineError:
    """Returns why a request was refused or failed."""
    return EngineError(unpack(error.code, error.message, error.details))
