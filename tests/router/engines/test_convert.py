import math
import random
from array import array
from dataclasses import replace

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.sampling_params import (
    ALL_PARAMS,
    BASIC_PARAMS,
    Grammar,
    LogitBias,
    SamplingParams,
    from_message,
)
from protos.wire.status import Reason
from router.engines.convert import status_of, to_load, to_model, to_submission
from router.placement.policy import POLICIES, Query, costs, place, reference_costs
from router.server.convert import to_list_engines_response
from router.types.engine_events import TokenRequest
from router.types.engine_state import EngineSnapshot, EngineState
from tests.fakes.fake_fleet import model_info


def test_load_is_taken_as_it_comes():
    load = to_load(
        engine_pb2.EngineLoad(
            state=engine_pb2.ENGINE_STATE_SERVING,
            running_count=3,
            waiting_prefill_token_count=500,
            prefill_tokens_per_second=20_000.5,
            decode_tokens_per_second=700.0,
        )
    )

    assert (load.state, load.num_running) == (EngineState.SERVING, 3)
    assert load.num_waiting_prefill_tokens == 500
    assert load.prefill_tokens_per_second == 20_000.5
    assert load.decode_tokens_per_second == 700.0


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1.0, 1e-300, 5e-324, 1.7e308])
def test_rate_that_is_none_counts_as_unmeasured(rate):
    load = to_load(
        engine_pb2.EngineLoad(prefill_tokens_per_second=rate, decode_tokens_per_second=rate)
    )

    assert load.prefill_tokens_per_second == load.decode_tokens_per_second == 0.0


def test_counts_below_zero_count_as_zero():
    load = to_load(engine_pb2.EngineLoad(waiting_prefill_token_count=-5, running_count=-1))

    assert load.num_waiting_prefill_tokens == load.num_running == 0


COUNTS = ("running_count", "waiting_count", "free_block_count", "total_block_count")
MOST = dict.fromkeys(COUNTS, 2**31 - 1) | {"waiting_prefill_token_count": 2**63 - 1}
LEAST = dict.fromkeys(COUNTS, -(2**31)) | {"waiting_prefill_token_count": -(2**63)}


@pytest.mark.parametrize("counts", [MOST, LEAST, MOST | {"total_block_count": 1}])
@pytest.mark.parametrize("rate", [0.01, 1e-300, 1.0, 1e9, 1.7e308, math.nan])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_load_that_an_engine_reports_breaks_placement_or_the_listing(counts, rate, policy):
    odd = to_load(
        engine_pb2.EngineLoad(
            state=1, prefill_tokens_per_second=rate, decode_tokens_per_second=rate, **counts
        )
    )
    model = model_info(max_num_seqs=1)
    engine = EngineSnapshot(
        address="a:1",
        state=EngineState.SERVING,
        model=model,
        load=odd,
        num_in_flight=1,
        num_in_flight_prefill_tokens=100,
        num_indexed_blocks=0,
    )
    engines = [engine, replace(engine, address="b:1", load=to_load(engine_pb2.EngineLoad(state=1)))]
    query = Query(model=model.name, fingerprint=model.fingerprint, num_prompt_tokens=10)

    placement = place(POLICIES[policy], engines, query, random.Random(0))
    listed = to_list_engines_response(engines, reference_costs(engines))

    assert placement is not None
    assert all(math.isfinite(one.total) for one in costs(engines, query).values())
    assert [engine.address for engine in listed.engines] == ["a:1", "b:1"]


def ended(code, details, trailers=()):
    metadata = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=details)


def details_bin(content):
    return [("grpc-status-details-bin", content)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff",
        Status(code=3, message="another").SerializeToString(),
        Status(code=2**31 - 1, message="x").SerializeToString(),
    ],
)
def test_status_in_trailers_that_cannot_be_right_is_passed_over(content):
    status = status_of(ended(grpc.StatusCode.UNAVAILABLE, "x", details_bin(content)))

    assert status.reason == Reason.ENGINE_FAILED
    assert status.message == "UNAVAILABLE: x"


def test_details_in_trailers_that_cannot_be_parsed_leave_code_and_message():
    broken = Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    content = Status(code=8, message="full", details=[broken]).SerializeToString()

    status = status_of(ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details_bin(content)))

    assert (status.code, status.message, status.retry_after) == (8, "full", None)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_message_of_a_failed_call_is_cut(code):
    assert len(status_of(ended(code, "m" * 100_000)).message) < 1100


ASKED = SamplingParams(
    temperature=0.5,
    max_tokens=0,
    ignore_eos=True,
    stop_token_ids=(4, 5),
    seed=2**63 - 1,
    top_k=3,
    top_p=0.5,
    min_p=0.25,
    presence_penalty=-1.0,
    frequency_penalty=1.0,
    repetition_penalty=2.0,
    min_tokens=2,
    logprobs=0,
    logit_bias=(LogitBias(3, -1.0),),
    bad_words_token_ids=((1, 2), (3,)),
    allowed_token_ids=array("I", [7, 8]),
    prompt_logprobs=0,
    sample_index=4,
    grammar=Grammar(form="choice", choices=("a", "b"), start_after_token_id=0),
)


def submitted(params, **model):
    """Returns the parameters that an engine gets."""
    request = TokenRequest(
        request_id="r", model="m", prompt_token_ids=array("i", [1]), sampling_params=params
    )
    return from_message(to_submission(7, request, model_info(**model)).request.sampling_params)


def test_every_parameter_is_submitted():
    assert submitted(ASKED, supported_params=ALL_PARAMS) == ASKED


def test_neutral_values_are_submitted_only_to_engines_that_know_the_field():
    neutral = SamplingParams(
        temperature=0.5, max_tokens=3, top_k=-1, top_p=1.0, min_p=0.0, presence_penalty=0.0,
        frequency_penalty=0.0, repetition_penalty=1.0, min_tokens=0, sample_index=0,
    )  # fmt: skip

    assert submitted(neutral) == SamplingParams(temperature=0.5, max_tokens=3)
    assert submitted(neutral, supported_params=BASIC_PARAMS | {"top_p"}) == SamplingParams(
        temperature=0.5, max_tokens=3, top_p=1.0
    )
    assert submitted(neutral, supported_params=ALL_PARAMS) == neutral


def test_defaults_of_an_engine_change_no_request_that_leaves_them_unset():
    own = SamplingParams(temperature=0.625, top_k=20, top_p=0.75, repetition_penalty=1.5)
    model = {"supported_params": ALL_PARAMS, "default_sampling_params": own}

    assert submitted(SamplingParams(top_p=0.5), **model) == SamplingParams(
        temperature=1.0, top_k=0, top_p=0.5, repetition_penalty=1.0
    )
    assert submitted(replace(own, min_p=0.5), **model) == replace(own, min_p=0.5)


def test_model_has_what_its_engine_says_of_parameters():
    model = to_model(
        engine_pb2.GetModelInfoResponse(
            supported_sampling_params=["top_k", "of_a_later_version", "temperature"],
            default_sampling_params=engine_pb2.SamplingParams(
                temperature=0, top_k=20, min_tokens=3, stop_token_ids=[1], logprobs=2
            ),
            max_logprob_count=20,
        )
    )

    assert model.supported_params == BASIC_PARAMS | {"top_k"}
    assert model.default_sampling_params == SamplingParams(temperature=0.0, top_k=20)
    assert model.max_logprobs == 20


def test_model_of_an_older_engine_has_the_basic_parameters_and_no_logprobs():
    model = to_model(engine_pb2.GetModelInfoResponse())

    assert model.supported_params == BASIC_PARAMS
    assert model.default_sampling_params == SamplingParams()
    assert model.max_logprobs == 0
