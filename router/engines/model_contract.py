"""Checks the model information of an engine."""

import re
from collections.abc import Mapping

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash
from protos.wire.limits import MAX_LOGPROBS
from protos.wire.sampling_params import out_of_bounds
from router.engines.convert import default_params

_MAX_NAME_CHARACTERS = 256
_MAX_EOS_TOKEN_IDS = 1024
_MAX_VOCABULARY_SIZE = 2**24
_MAX_BLOCK_SIZE = 2**16

# Each bounds the length of its text.
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "vocabulary_size": (1, _MAX_VOCABULARY_SIZE),
    "max_model_length_tokens": (1, 2**31 - 1),
    "block_size_tokens": (1, _MAX_BLOCK_SIZE),
    "total_block_count": (1, 2**31 - 1),
    "max_running_request_count": (1, 2**31 - 1),
    "max_batched_token_count": (0, 2**31 - 1),
    "max_logprob_count": (0, MAX_LOGPROBS),
    "epoch": (1, 2**64 - 1),
}


def model_fault(response: engine_pb2.GetModelInfoResponse) -> str:
    """Returns what is wrong with the model information, or an empty string.

    The text names the field, its value (cut to a bounded length) and the bound.
    """
    if response.block_hash_scheme != block_hash.SCHEME:
        theirs = response.block_hash_scheme[:_MAX_NAME_CHARACTERS]
        return f'its block hash scheme is "{theirs}"; this router knows "{block_hash.SCHEME}"'
    for field, (least, most) in _BOUNDS.items():
        value = getattr(response, field)
        if not least <= value <= most:
            return f"{field} is {value}, outside {least} to {most}"
    return _text_fault(response) or _eos_fault(response) or _defaults_fault(response)


def _text_fault(response: engine_pb2.GetModelInfoResponse) -> str:
    for field, least in (("model_name", 1), ("architecture", 0)):
        text = getattr(response, field)
        if not least <= len(text) <= _MAX_NAME_CHARACTERS:
            return f"{field} has {len(text)} characters, outside {least} to {_MAX_NAME_CHARACTERS}"
        if not text.isprintable():
            return f"{field} is {text!r}, with unprintable characters"
    for field, pattern, form in (
        ("model_fingerprint", _FINGERPRINT, "32 hexadecimal digits"),
        ("tokenizer_sha256", _DIGEST, "64 hexadecimal digits or empty"),
    ):
        text = getattr(response, field)
        if not pattern.fullmatch(text):
            return f"{field} is {text[:_MAX_NAME_CHARACTERS]!r}, not {form}"
    return ""


def _eos_fault(response: engine_pb2.GetModelInfoResponse) -> str:
    token_ids = response.eos_token_ids
    if len(token_ids) > _MAX_EOS_TOKEN_IDS:
        return f"eos_token_ids has {len(token_ids)} entries, over {_MAX_EOS_TOKEN_IDS}"
    largest = max(token_ids, default=0)
    if largest >= response.vocabulary_size:
        return f"eos_token_ids contains {largest}, outside 0 to {response.vocabulary_size - 1}"
    return ""


def _defaults_fault(response: engine_pb2.GetModelInfoResponse) -> str:
    fault = out_of_bounds(default_params(response.default_sampling_params))
    if fault is None:
        return ""
    return f"default_sampling_params.{fault.field} is {fault.value}, outside {fault.bounds}"
