"""Converts between protobuf messages and core types; values are checked here and in `Limits`."""

import dataclasses
import time
import uuid
from array import array
from collections.abc import Iterator

import numpy as np

from engine_service.core.limits import Limits
from engine_service.core.logprobs import StepLogprobs
from engine_service.core.types import (
    Admission,
    EngineInfo,
    Finish,
    FinishReason,
    Request,
)
from engine_service.errors import InvalidRequest, RequestError
from engine_service.server.batch_parts import batch_parts
from engine_service.server.cache_log import NumberedDelta, SnapshotPart
from engine_service.server.load_meter import Load
from engine_service.server.output_stream import OutputBatch, PromptLogprobs
from engine_service.server.tokenizer_files import TokenizerFiles
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash, sampling_params
from protos.wire.limits import (
    MAX_CHUNK_BYTES,
    MAX_LABEL_CHARACTERS,
)
from protos.wire.printable import first_unprintable, shown
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from protos.wire.status import pack_details
from protos.wire.token_ids import add_floats, add_token_ids, read_token_ids
from servicekit.status import to_error_status

_FINISH_REASONS = {
    FinishReason.STOP: engine_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: engine_pb2.FINISH_REASON_LENGTH,
}


def request_name(message: engine_pb2.GenerateRequest) -> str:
    """Returns the client's name for the request, or a generated one.

    Raises:
        InvalidRequest: The name is too long or not printable.
    """
    return checked_name(message.request_id)


def checked_name(name: str) -> str:
    """Returns the client's name for a request, or a generated one if it is empty.

    Raises:
        InvalidRequest: The name is too long or not printable.
    """
    _check_length("request_id", len(name), MAX_LABEL_CHARACTERS, "characters")
    if not name.isprintable():
        raise InvalidRequest(
            f"request_id contains {first_unprintable(name)}; it must be printable",
            {"field": "request_id", "value": shown(name), "bounds": "printable characters"},
        )
    return name or uuid.uuid4().hex


def to_request(
    message: engine_pb2.GenerateRequest,
    request_id: int,
    limits: Limits,
    defaults: SamplingParams,
) -> Request:
    """Converts to a core request and checks it completely.

    List lengths are checked before the lists are copied, so rejecting a huge one is cheap.

    Args:
        message: The client's message.
        request_id: Its number in the core.
        limits: What this engine can serve.
        defaults: The model's own, for parameters that the message leaves unset.

    Raises:
        InvalidRequest: The message names the field, its value and the bound.
    """
    params = sampling_params.from_message(message.sampling_params)
    request = Request(
        request_id=request_id,
        prompt_token_ids=_token_ids(message, "prompt_token_ids", limits),
        sampling_params=sampling_params.with_defaults(params, defaults),
        resume_token_ids=_token_ids(message, "resume_token_ids", limits),
        priority=message.priority,
        cache_salt=message.cache_salt,
        arrival_time=time.monotonic(),
    )
    check(request, limits)
    return request


def check(request: Request, limits: Limits) -> None:
    """Checks a request completely, without blocking the event loop for long.

    Raises:
        InvalidRequest: The message names the field, its value and the bound.
    """
    params = request.sampling_params
    limits.check_all_but_token_ids(request)
    _check_token_ids("prompt_token_ids", request.prompt_token_ids, limits)
    _check_token_ids("resume_token_ids", request.resume_token_ids, limits)
    allowed = params.allowed_token_ids
    if isinstance(allowed, array):  # else it is empty
        _check_token_ids("allowed_token_ids", allowed, limits)
    limits.check_short_lists(params)


def timeout_seconds(message: engine_pb2.Submission) -> float | None:
    """Returns the request's time limit in seconds, or None."""
    if not message.HasField("timeout"):
        return None
    return float(message.timeout.seconds + message.timeout.nanos / 1e9)


def to_generate_responses(batch: OutputBatch) -> Iterator[engine_pb2.GenerateResponse]:
    """Yields the next messages of a call with one request, usually one message."""
    content = dataclasses.replace(batch, admissions=[], finishes=[], failures=[])
    responses = [_to_generate_response(part) for part in batch_parts(content)]
    for _, admission in batch.admissions:
        responses[0].admission.CopyFrom(_from_admission(admission))
    for _, finish in batch.finishes:
        responses[-1].finish.CopyFrom(_from_finish(finish))
    yield from responses


def to_generate_many_responses(
    batch: OutputBatch, load: Load
) -> Iterator[engine_pb2.GenerateManyResponse]:
    """Yields the next messages of a stream, usually one."""
    for part in batch_parts(batch):
        response = engine_pb2.GenerateManyResponse(
            handles=part.handles,
            token_counts=part.token_counts,
            admissions=[
                engine_pb2.RequestAdmission(handle=handle, admission=_from_admission(admission))
                for handle, admission in part.admissions
            ],
            finishes=[
                engine_pb2.RequestFinish(handle=handle, finish=_from_finish(finish))
                for handle, finish in part.finishes
            ],
            failures=[
                engine_pb2.RequestFailure(handle=handle, error=_from_error(error))
                for handle, error in part.failures
            ],
            load=_from_load(load),
        )
        for handle, logprobs in part.logprobs.items():
            fill_logprobs(response.logprobs.add(handle=handle).logprobs, logprobs)
        for handle, prompt in part.prompt_logprobs.items():
            entry = response.prompt_logprobs.add(handle=handle)
            fill_prompt_logprobs(entry.prompt_logprobs, prompt)
        yield add_token_ids(response, "token_ids", part.token_ids)


def fill_prompt_logprobs(message: engine_pb2.PromptLogprobs, prompt: PromptLogprobs) -> None:
    """Writes the logprobs of a prompt's tokens into an empty message."""
    message.first_position = prompt.first_position
    fill_logprobs(message.logprobs, prompt.logprobs)


def fill_logprobs(message: engine_pb2.Logprobs, logprobs: StepLogprobs) -> None:
    """Writes the logprobs of tokens into an empty message."""
    add_token_ids(message, "top_token_ids", logprobs.top_token_ids)
    add_floats(message, "logprobs", logprobs.logprobs)
    add_floats(message, "top_logprobs", logprobs.top_logprobs)


def to_watch_cache_response(
    epoch: int, change: SnapshotPart | NumberedDelta
) -> engine_pb2.WatchCacheResponse:
    """Returns one message of a watch."""
    response = engine_pb2.WatchCacheResponse(epoch=epoch, sequence_number=change.sequence_number)
    if isinstance(change, SnapshotPart):
        response.snapshot.CopyFrom(
            engine_pb2.CacheSnapshot(
                block_hashes=change.hashes,
                first=change.is_first,
                last=change.is_last,
                part_number=change.number,
            )
        )
    else:
        response.delta.CopyFrom(
            engine_pb2.CacheDelta(
                stored_block_hashes=change.delta.stored,
                removed_block_hashes=change.delta.removed,
            )
        )
    return response


def to_model_info_response(
    info: EngineInfo, *, epoch: int, tokenizer_sha256: str, engine_version: str
) -> engine_pb2.GetModelInfoResponse:
    """Returns the description of the model and the engine's limits."""
    return engine_pb2.GetModelInfoResponse(
        model_name=info.model_name,
        architecture=info.architecture,
        model_fingerprint=info.model_fingerprint,
        vocabulary_size=info.vocab_size,
        max_model_length_tokens=info.max_model_len,
        block_size_tokens=info.block_size,
        block_hash_scheme=block_hash.SCHEME,
        eos_token_ids=sorted(info.eos_token_ids),
        epoch=epoch,
        total_block_count=info.num_blocks,
        max_running_request_count=info.max_num_seqs,
        max_batched_token_count=info.max_num_batched_tokens,
        tensor_parallel_size=info.tensor_parallel_size,
        dtype=info.dtype,
        tokenizer_sha256=tokenizer_sha256,
        supported_sampling_params=info.supported_params,
        engine_version=engine_version,
        default_sampling_params=engine_pb2.SamplingParams(
            **sampling_params.to_fields(info.default_sampling_params)
        ),
        max_logprob_count=info.max_logprobs,
    )


def to_tokenizer_responses(
    tokenizer: TokenizerFiles,
) -> Iterator[engine_pb2.GetTokenizerResponse]:
    """Yields each file's header and its chunks of up to 1 MiB."""
    for file in tokenizer.files:
        yield engine_pb2.GetTokenizerResponse(
            file=engine_pb2.TokenizerFile(
                name=file.name, size_bytes=len(file.content), sha256=file.sha256
            )
        )
        for start in range(0, len(file.content), MAX_CHUNK_BYTES):
            yield engine_pb2.GetTokenizerResponse(
                chunk=file.content[start : start + MAX_CHUNK_BYTES]
            )


def _token_ids(message: engine_pb2.GenerateRequest, field: str, limits: Limits) -> "array[int]":
    check_token_count(field, len(getattr(message, field)), limits)
    return array("i", read_token_ids(message, field).tobytes())


def check_token_count(field: str, count: int, limits: Limits) -> None:
    """Refuses a list of more tokens than a sequence may have, before it is copied.

    Raises:
        InvalidRequest: Names field, count and bound.
    """
    bound = limits.max_sequence_len
    if count > bound:
        raise InvalidRequest(
            f"{field} has {count} tokens, the most allowed is {bound}",
            {"field": field, "value": str(count), "bounds": f"0 to {bound}"},
            reason=Reason.PROMPT_TOO_LONG,
        )


def _check_token_ids(field: str, token_ids: "array[int]", limits: Limits) -> None:
    # Like `Limits.check_token_ids`, which would block the event loop for 80 ms per million.
    are_outside = np.frombuffer(token_ids or b"", np.uint32) >= limits.vocab_size
    if are_outside.any():
        index = int(are_outside.argmax())
        raise limits.token_out_of_range(field, index, token_ids[index] % 2**32)


def _check_length(field: str, length: int, bound: int, unit: str) -> None:
    if length > bound:
        raise InvalidRequest(
            f"{field} has {length} {unit}, the most allowed is {bound}",
            {"field": field, "value": str(length), "bounds": f"0 to {bound}"},
        )


def _to_generate_response(part: OutputBatch) -> engine_pb2.GenerateResponse:
    response = engine_pb2.GenerateResponse()
    for logprobs in part.logprobs.values():
        fill_logprobs(response.logprobs, logprobs)
    for prompt in part.prompt_logprobs.values():
        fill_prompt_logprobs(response.prompt_logprobs, prompt)
    return add_token_ids(response, "token_ids", part.token_ids)


def _from_admission(admission: Admission) -> engine_pb2.Admission:
    return engine_pb2.Admission(cached_token_count=admission.num_cached_tokens, seed=admission.seed)


def _from_finish(finish: Finish) -> engine_pb2.Finish:
    return engine_pb2.Finish(
        reason=_FINISH_REASONS[finish.reason], stop_token_id=finish.stop_token_id
    )


def _from_error(error: RequestError) -> engine_pb2.RequestError:
    status = to_error_status(error)
    return engine_pb2.RequestError(
        code=status.code, message=status.message, details=pack_details(status)
    )


def _from_load(load: Load) -> engine_pb2.EngineLoad:
    state = (
        engine_pb2.ENGINE_STATE_DRAINING if load.is_draining else engine_pb2.ENGINE_STATE_SERVING
    )
    return engine_pb2.EngineLoad(
        state=state,
        running_count=load.num_running,
        waiting_count=load.num_waiting,
        waiting_prefill_token_count=load.num_waiting_prefill_tokens,
        free_block_count=load.num_free_blocks,
        total_block_count=load.num_blocks,
        prefill_tokens_per_second=load.prefill_rate,
        decode_tokens_per_second=load.decode_rate,
    )
