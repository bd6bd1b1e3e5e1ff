"""Steps of any size go out in messages within the contract's bounds, with nothing lost."""

import pytest

from engine_service.core.types import Admission, Finish, FinishReason, int32_array
from engine_service.errors import QueueFull
from engine_service.server import convert
from engine_service.server.batch_parts import batch_parts
from engine_service.server.load_meter import Load
from engine_service.server.output_stream import OutputBatch
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.channel import ENGINE_RESPONSE_BYTES
from protos.wire.message_parser import MessageParser

parse = MessageParser(engine_pb2.GenerateManyResponse)


def batch_of(num_requests, num_tokens, num_events=0, num_failures=0):
    admission = Admission(request_id=1, num_cached_tokens=1, seed=2**62, queue_seconds=0.0)
    finish = Finish(request_id=1, reason=FinishReason.STOP, stop_token_id=3)
    error = QueueFull("x" * 5000, {"value": "y" * 1000, "bounds": "z" * 1000}, retry_after=1.0)
    return OutputBatch(
        handles=list(range(num_requests)),
        token_counts=[num_tokens] * num_requests,
        token_ids=int32_array(range(num_requests * num_tokens)),
        admissions=[(handle, admission) for handle in range(num_events)],
        finishes=[(handle, finish) for handle in range(num_events)],
        failures=[(handle, error) for handle in range(num_failures)],
    )


@pytest.mark.parametrize(
    "sizes",
    [(0, 0), (1, 1), (256, 1, 256), (1, 300_000), (9000, 3), (3, 100_000), (20_000, 20, 3000, 600)],
)
def test_parts_hold_everything_in_order_and_an_engine_s_peer_takes_each(sizes):
    batch = batch_of(*sizes)
    responses = list(convert.to_generate_many_responses(batch, Load()))

    tokens: dict[int, list[int]] = {}
    ended = set()
    admitted: list[tuple[int, int]] = []
    for response in responses:
        content = response.SerializeToString()
        assert len(content) <= ENGINE_RESPONSE_BYTES
        assert parse(content) == response
        start = 0
        assert len(response.handles) == len(response.token_counts)
        assert sum(response.token_counts) == len(response.token_ids)
        for handle, count in zip(response.handles, response.token_counts, strict=True):
            assert handle not in ended
            tokens.setdefault(handle, []).extend(response.token_ids[start : start + count])
            start += count
        ended.update(finish.handle for finish in response.finishes)
        admitted.extend((admission.handle, len(tokens)) for admission in response.admissions)

    is_split = len(responses) > 1
    assert not is_split or all(num_begun == 0 for _, num_begun in admitted)
    assert list(tokens) == batch.handles
    assert [token for ids in tokens.values() for token in ids] == list(batch.token_ids)
    for name in ("admissions", "finishes", "failures"):
        found = [one.handle for response in responses for one in getattr(response, name)]
        assert found == [handle for handle, _ in getattr(batch, name)]


def test_batch_that_fits_is_one_part():
    batch = batch_of(256, 1, 256, 256)
    assert list(batch_parts(batch)) == [batch]
    assert len(list(convert.to_generate_many_responses(OutputBatch(), Load()))) == 1


def test_answer_that_was_not_read_for_long_is_spread_over_messages():
    responses = list(convert.to_generate_responses(batch_of(1, 300_000, 1)))
    assert [len(response.token_ids) for response in responses] == [131_072, 131_072, 37_856]
    assert [r.HasField("admission") for r in responses] == [True, False, False]
    assert [r.HasField("finish") for r in responses] == [False, False, True]
