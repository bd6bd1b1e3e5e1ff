import math

import pytest

from protos.pagestream.engine.v1 import engine_pb2
from router.engine_convert import to_load
from router.types import EngineState


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


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1.0])
def test_rate_that_is_none_counts_as_unmeasured(rate):
    load = to_load(
        engine_pb2.EngineLoad(prefill_tokens_per_second=rate, decode_tokens_per_second=rate)
    )

    assert load.prefill_tokens_per_second == load.decode_tokens_per_second == 0.0


def test_counts_below_zero_count_as_zero():
    load = to_load(engine_pb2.EngineLoad(waiting_prefill_token_count=-5, running_count=-1))

    assert load.num_waiting_prefill_tokens == load.num_running == 0
