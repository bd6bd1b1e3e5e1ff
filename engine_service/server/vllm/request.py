"""Converts a GenerateRequest of the vLLM service into requests of the core, one for each sample.

Names and meanings of the protocol are kept: 0 means off or 1 where a field cannot be unset, and the
model's own defaults do not apply, since gateways read them from GetModelInfo and send them.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from engine_service.core.limits import Limits
from engine_service.core.types import Request
from engine_service.errors import InvalidRequest
from engine_service.server import convert
from engine_service.server.vllm.message import Message
from engine_service.server.vllm.token_ids import read_varint_ids
from protos.wire.limits import MAX_SAMPLES
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams

if TYPE_CHECKING:
    from array import array

_UNSERVED = {
    "text": "the engine takes token IDs only, in tokenized.input_ids",
    "kv_transfer_params": "the engine does not split prefill from decoding",
    "kv_transfer_params_json": "the engine does not split prefill from decoding",
    "mm_inputs": "the engine takes text models only",
    "extra_mm_inputs": "the engine takes text models only",
    "media_refs": "the engine takes text models only",
}
_GRAMMAR_FORMS = {"json_schema": "json_schema", "regex": "regex", "grammar": "lark"}
"""By field of the constraint, the form of a grammar whose text it holds."""


def to_requests(
    message: Message, limits: Limits, next_request_id: Callable[[], int]
) -> list[Request]:
    """Converts to core requests that differ in their draws only, and checks them completely.

    Args:
        message: The client's message, within the bounds of its fields.
        limits: What this engine can serve.
        next_request_id: Returns an unused number in the core.

    Raises:
        InvalidRequest: The message names the field, its value and the bound.
    """
    _check_served(message)
    params = message.sampling_params
    num_samples = params.n or 1
    if num_samples > MAX_SAMPLES:
        raise _out_of_bounds("sampling_params.n", params.n, f"0 to {MAX_SAMPLES}")
    request = Request(
        request_id=next_request_id(),
        prompt_token_ids=_prompt(message, limits),
        sampling_params=_sampling_params(params),
        arrival_time=time.monotonic(),
    )
    convert.check(request, limits)
    others = [
        replace(
            request,
            request_id=next_request_id(),
            # Those of the prompt are equal for all.
            sampling_params=replace(
                request.sampling_params, sample_index=index, prompt_logprobs=None
            ),
        )
        for index in range(1, num_samples)
    ]
    if others:
        # Without prompt_logprobs, max_tokens 0 is refused.
        convert.check(others[0], limits)
    return [request, *others]


def check_rank(field: str, rank: int) -> None:
    """Refuses a data-parallel rank that is not the engine's only one.

    Raises:
        InvalidRequest: Names the field, its value and the bound.
    """
    if rank:
        raise _out_of_bounds(field, rank, "0 to 0")


def _check_served(message: Message) -> None:
    for field, _ in message.ListFields():
        if why := _UNSERVED.get(field.name):
            raise unsupported(field.name, why)
    check_rank("data_parallel_rank", message.data_parallel_rank)


def _prompt(message: Message, limits: Limits) -> "array[int]":
    tokenized = message.tokenized
    # A copy of the text would cost as much as the tokens.
    tokenized.ClearField("original_text")
    tokenized.DiscardUnknownFields()
    params = message.sampling_params
    if not params.HasField("truncate_prompt_tokens"):
        convert.check_token_count("tokenized.input_ids", len(tokenized.input_ids), limits)
        return read_varint_ids(tokenized, "input_ids")
    kept = params.truncate_prompt_tokens
    if kept < 1:
        raise _out_of_bounds("sampling_params.truncate_prompt_tokens", kept, "1 and more")
    return read_varint_ids(tokenized, "input_ids")[-kept:]


def _sampling_params(params: Message) -> SamplingParams:
    return SamplingParams(
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        ignore_eos=params.ignore_eos,
        stop_token_ids=tuple(params.stop_token_ids),
        seed=params.seed if params.HasField("seed") else None,
        top_k=params.top_k,
        top_p=params.top_p or 1.0,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty or 1.0,
        min_tokens=params.min_tokens,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
        logit_bias=tuple(LogitBias(*item) for item in params.logit_bias.items()),
        grammar=_grammar(params),
    )


def _grammar(params: Message) -> Grammar | None:
    constraint = params.WhichOneof("constraint")
    if constraint is None or (constraint == "json_object" and not params.json_object):
        return None
    if constraint == "structural_tag":
        raise unsupported(
            "sampling_params.structural_tag", "use json_schema, regex, grammar or choice"
        )
    if constraint == "choice":
        return Grammar(form="choice", choices=tuple(params.choice.choices))
    if constraint == "json_object":
        return Grammar(form="json_object")
    return Grammar(form=_GRAMMAR_FORMS[constraint], text=getattr(params, constraint))


def _out_of_bounds(field: str, value: int, bounds: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is {value}, outside {bounds}",
        {"field": field, "value": str(value), "bounds": bounds},
    )


def unsupported(field: str, why: str) -> InvalidRequest:
    """Returns the error for a field that is set but not served."""
    return InvalidRequest(
        f"{field} is set, but must be unset: {why}",
        {"field": field, "value": "set", "bounds": "unset"},
        reason=Reason.UNSUPPORTED_PARAMETER,
    )
