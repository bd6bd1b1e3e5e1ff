import math

import pytest

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash
from router.engines.model_contract import model_fault

GOOD = engine_pb2.GetModelInfoResponse(
    model_name="Qwen/Qwen3-0.6B",
    architecture="Qwen3ForCausalLM",
    model_fingerprint="0123456789abcdef" * 2,
    vocabulary_size=1000,
    max_model_length_tokens=4096,
    block_size_tokens=16,
    block_hash_scheme=block_hash.SCHEME,
    eos_token_ids=[0, 999],
    epoch=2**64 - 1,
    total_block_count=100,
    max_running_request_count=8,
    tokenizer_sha256="a" * 64,
)


def defaults(**fields):
    return {"default_sampling_params": engine_pb2.SamplingParams(**fields)}


def changed(**fields):
    response = engine_pb2.GetModelInfoResponse()
    response.CopyFrom(GOOD)
    for name in fields:
        response.ClearField(name)
    response.MergeFrom(engine_pb2.GetModelInfoResponse(**fields))
    return response


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tokenizer_sha256": ""},
        {"architecture": ""},
        {"model_name": "模型 ü/v1.0"},
        {"max_batched_token_count": 8192},
        {"eos_token_ids": []},
        {"eos_token_ids": [1] * 1024},
        {"max_logprob_count": 100},
        {"supported_sampling_params": ["temperature", "of_a_later_version"]},
        defaults(),
        defaults(temperature=0, top_k=-1, top_p=1, min_p=0, repetition_penalty=100),
        # No defaults of a model, which the router does not use.
        defaults(presence_penalty=math.nan, logprobs=-1, stop_token_ids=[2**31], max_tokens=-9),
    ],
)
def test_good_description_has_no_fault(fields):
    assert model_fault(changed(**fields)) == ""


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"model_name": ""}, "model_name has 0 characters, outside 1 to 256"),
        ({"model_name": "n" * 257}, "model_name has 257 characters"),
        ({"model_name": "a\nb"}, "model_name is 'a\\nb', with unprintable characters"),
        ({"architecture": "\x1b[31m"}, "architecture is"),
        ({"architecture": "\u202e"}, "architecture is"),
        ({"model_fingerprint": ""}, "model_fingerprint is '', not 32 hexadecimal digits"),
        ({"model_fingerprint": "F" * 32}, "model_fingerprint is"),
        ({"model_fingerprint": "f" * 33}, "model_fingerprint is"),
        ({"tokenizer_sha256": "a" * 63}, "tokenizer_sha256 is"),
        ({"block_hash_scheme": "md5"}, 'block hash scheme is "md5"'),
        ({"vocabulary_size": 0}, "vocabulary_size is 0, outside 1 to"),
        ({"vocabulary_size": 2**31 - 1}, "vocabulary_size is 2147483647"),
        ({"max_model_length_tokens": -1}, "max_model_length_tokens is -1"),
        ({"block_size_tokens": 0}, "block_size_tokens is 0"),
        ({"total_block_count": 0}, "total_block_count is 0"),
        ({"max_running_request_count": -3}, "max_running_request_count is -3"),
        ({"max_batched_token_count": -9}, "max_batched_token_count is -9"),
        ({"epoch": 0}, "epoch is 0"),
        ({"eos_token_ids": [1] * 1025}, "eos_token_ids has 1025 entries, over 1024"),
        ({"max_logprob_count": -1}, "max_logprob_count is -1, outside 0 to 100"),
        ({"max_logprob_count": 101}, "max_logprob_count is 101"),
        (defaults(temperature=math.nan), "default_sampling_params.temperature is NaN, outside 0"),
        (defaults(temperature=math.inf), "default_sampling_params.temperature is inf"),
        (defaults(top_k=-2), "default_sampling_params.top_k is -2, outside -1 to 2147483647"),
        (defaults(top_p=1.5), "default_sampling_params.top_p is 1.5, outside 0 to 1"),
        (defaults(min_p=-0.5), "default_sampling_params.min_p is -0.5"),
        (defaults(repetition_penalty=0), "default_sampling_params.repetition_penalty is 0"),
        ({"eos_token_ids": [1000]}, "eos_token_ids contains 1000, outside 0 to 999"),
    ],
)
def test_fault_names_the_field_the_value_and_the_bound(fields, fault):
    found = model_fault(changed(**fields))

    assert fault in found
    assert found.isprintable()


@pytest.mark.parametrize(
    "field", ["model_name", "architecture", "model_fingerprint", "tokenizer_sha256"]
)
def test_fault_of_a_huge_text_is_short(field):
    assert 0 < len(model_fault(changed(**{field: "x" * 5_000_000}))) < 1000
