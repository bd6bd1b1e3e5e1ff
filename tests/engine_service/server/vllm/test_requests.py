"""What a request of the vLLM service becomes, and which ones are refused."""

import random

import pytest
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_service.core.limits import Limits
from engine_service.errors import InvalidRequest
from engine_service.server.vllm.request import to_requests
from engine_service.server.vllm.stop_texts import StopTexts
from engine_service.server.vllm.token_ids import read_varint_ids
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import status_of
from tests.engine_service.server.vllm.client import request, running_vllm_engine

LIMITS = Limits.from_info(make_info(max_model_len=64, vocab_size=100))


def converted(message, limits=LIMITS):
    (only,) = to_requests(message, limits, lambda: 1)
    return only


def test_fields_that_cannot_be_unset_are_off_when_they_are_zero():
    neutral = SamplingParams(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        min_tokens=0,
    )
    assert converted(request()).sampling_params == neutral
    assert converted(request(n=1, json_object=False)).sampling_params == neutral


def test_every_parameter_reaches_the_core():
    message = request(
        7,
        8,
        temperature=0.0,
        top_p=0.5,
        top_k=5,
        min_p=0.25,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.5,
        max_tokens=9,
        min_tokens=2,
        stop_token_ids=[3, 4],
        ignore_eos=True,
        logprobs=3,
        prompt_logprobs=0,
        seed=11,
        logit_bias={5: -1.5},
    )
    found = converted(message)
    assert list(found.prompt_token_ids) == [7, 8]
    assert found.sampling_params == SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=5,
        min_p=0.25,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.5,
        max_tokens=9,
        min_tokens=2,
        stop_token_ids=(3, 4),
        ignore_eos=True,
        logprobs=3,
        prompt_logprobs=0,
        seed=11,
        logit_bias=(LogitBias(5, -1.5),),
    )


@pytest.mark.parametrize(
    ("constraint", "grammar"),
    [
        ({"json_schema": "{}"}, Grammar(form="json_schema", text="{}")),
        ({"regex": "a+"}, Grammar(form="regex", text="a+")),
        ({"grammar": 'start: "a"'}, Grammar(form="lark", text='start: "a"')),
        ({"json_object": True}, Grammar(form="json_object")),
        ({"choice": {"choices": ["a", "b"]}}, Grammar(form="choice", choices=("a", "b"))),
    ],
)
def test_constraint_is_a_grammar_of_the_core(constraint, grammar):
    assert converted(request(**constraint)).sampling_params.grammar == grammar


def test_prompt_is_cut_to_its_end():
    message = request(*range(1, 90), truncate_prompt_tokens=3)
    assert list(converted(message).prompt_token_ids) == [87, 88, 89]


def test_many_token_ids_are_read_as_few_are():
    chance = random.Random(1)
    token_ids = [chance.choice([0, 127, 128, 2**14, 2**21, 2**28, 2**31 - 1]) for _ in range(5000)]
    token_ids[7] = 2**32 - 1
    for count in (0, 1, 511, 512, 5000):
        message = pb.TokenizedInput(input_ids=token_ids[:count])
        found = [value % 2**32 for value in read_varint_ids(message, "input_ids")]
        assert found == token_ids[:count]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"text": "hello"}, "text is set, but must be unset: the engine takes token IDs only"),
        ({"kv_transfer_params": {"remote_port": 1}}, "kv_transfer_params is set"),
        ({"kv_transfer_params_json": ""}, "kv_transfer_params_json is set"),
        ({"mm_inputs": {"im_token_id": 1}}, "mm_inputs is set"),
        ({"media_refs": {}}, "media_refs is set"),
        ({"data_parallel_rank": 1}, "data_parallel_rank is 1, outside 0 to 0"),
        ({"data_parallel_rank": -1}, "data_parallel_rank is -1, outside 0 to 0"),
    ],
)
def test_what_the_engine_does_not_serve_is_refused_by_name(fields, text):
    message = request()
    message.MergeFrom(pb.GenerateRequest(**fields))
    with pytest.raises(InvalidRequest, match=text):
        converted(message)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"temperature": 200.0}, "temperature is 200, outside 0 to 100"),
        ({"top_p": 1.5}, "top_p is 1.5, outside 0 to 1"),
        ({"top_k": 2**32 - 1}, "top_k is 4294967295, outside -1 to 2147483647"),
        ({"n": 129}, "sampling_params.n is 129, outside 0 to 128"),
        ({"logprobs": -1}, "logprobs is -1, outside 0 to 100"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1, outside 0 to 100"),
        ({"seed": -1}, "seed is -1, outside 0 to"),
        ({"max_tokens": 0}, "max_tokens is 0, outside 1 and more"),
        ({"max_tokens": 62}, "are 65 tokens, over max_model_len 64"),
        ({"max_tokens": 0, "prompt_logprobs": 1, "n": 2}, "max_tokens is 0"),
        ({"stop_token_ids": [100]}, r"stop_token_ids\[0\] is 100, outside 0 to 99"),
        ({"logit_bias": {-1: 1.0}}, r"logit_bias\[0\].token_id is -1, outside 0 to 99"),
        ({"structural_tag": "{}"}, "sampling_params.structural_tag is set"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens is -1, outside 1 and more"),
    ],
)
def test_wrong_parameter_is_refused_with_its_bound(params, text):
    with pytest.raises(InvalidRequest, match=text):
        to_requests(request(**params), LIMITS, lambda: 1)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ((5, 100), r"prompt_token_ids\[1\] is 100, outside 0 to 99"),
        ((2**32 - 1,), r"prompt_token_ids\[0\] is 4294967295, outside 0 to 99"),
        (range(65), "tokenized.input_ids has 65 tokens, the most allowed is 64"),
    ],
)
def test_wrong_prompt_is_refused(prompt, text):
    with pytest.raises(InvalidRequest, match=text):
        converted(request(*prompt))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.GenerateRequest(request_id="r"), "prompt_token_ids is empty"),
        (request(name="a\nb"), "request_id contains"),
        (request(name="x" * 257), "request_id has 257 characters, the most allowed is 256"),
        (request(stop=["x"]), "sampling_params.stop is set, but must be unset: the model has no"),
        (request(stop=[""]), r"sampling_params.stop\[0\] is empty"),
        (request(stop=["x"] * 65), "sampling_params.stop has 65 entries, the most allowed is 64"),
        (
            request(logit_bias=dict.fromkeys(range(1025), 1.0)),
            "sampling_params.logit_bias has 1025 entries, the most allowed is 1024",
        ),
        (
            pb.GenerateRequest(mm_inputs={"pixel_values": {"inline": b"x" * 9}}),
            "mm_inputs.pixel_values.inline has 9 bytes, the most allowed is 0",
        ),
        (
            pb.GenerateRequest(
                mm_inputs={"model_specific_tensors": {"x": {"inline": b"x" * 100_000}}}
            ),
            "mm_inputs.model_specific_tensors has at least 1 entries, the most allowed is 0",
        ),
    ],
    ids=str,
)
async def test_message_out_of_bounds_is_refused_with_the_field_and_the_bound(message, text):
    async with running_vllm_engine() as (_, stub):
        call = stub.Generate(message)
        status = await status_of(call)
        assert status.code == 3
        assert text.replace("\\", "") in status.message


async def test_other_calls_have_bounds_too():
    async with running_vllm_engine() as (_, stub):
        names = ["x"] * 4097
        for call, text in (
            (stub.Abort(pb.AbortRequest(request_ids=names)), "request_ids has 4097 entries"),
            (stub.GetLoads(pb.GetLoadsRequest(dp_rank=1)), "dp_rank is 1, outside 0 to 0"),
            (
                stub.GetLoads(pb.GetLoadsRequest(include=["x"] * 65)),
                "include has 65 entries, the most allowed is 64",
            ),
        ):
            status = await status_of(call)
            assert (status.code, text in status.message) == (3, True), status


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Embed", pb.EmbedRequest()),
        ("FlushCache", common_pb2.FlushCacheRequest()),
        ("StartProfile", common_pb2.StartProfileRequest()),
        ("StopProfile", common_pb2.StopProfileRequest()),
    ],
)
async def test_calls_that_are_not_served_say_so_by_name(method, message):
    async with running_vllm_engine() as (_, stub):
        status = await status_of(getattr(stub, method)(message))
        assert status.code == 12
        assert status.message.startswith(f"{method} is not served: ")


def test_stop_texts_are_found_across_tokens_of_bytes():
    tokens = [b"a", b"\xc3", b"\xa9", b"stop", b""]

    def find(texts, *token_ids, min_tokens=0):
        return StopTexts(texts, tokens.__getitem__, min_tokens).find(token_ids)

    assert find(["aé"], 0, 1, 2, 3) == ("aé", 3)
    assert find(["x", "a"], 3, 0, 0) == ("a", 2)
    assert find(["top"], 0, 3) == ("top", 2)
    assert find(["as"], 0, 4, 3) == ("as", 3)
    assert find(["é"], 1, 0, 2) is None
    assert find(["a"], 0, 0, 0, min_tokens=3) == ("a", 3)


def test_stop_texts_are_found_across_steps():
    stops = StopTexts(["abc"], lambda token_id: bytes([token_id]), 0)
    assert stops.find(b"xxa") is None
    assert stops.find(b"b") is None
    assert stops.find(b"cab") == ("abc", 1)
