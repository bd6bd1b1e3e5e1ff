import math
import random
from dataclasses import replace

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.status import Reason
from router.engines.convert import status_of, to_load
from router.placement.policy import POLICIES, Query, place, reference_costs
from router.server.convert import to_list_engines_response
from router.types import EngineSnapshot, EngineState
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

    assert math.isfinite(placement.cost.total)
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
