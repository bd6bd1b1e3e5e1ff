"""Token IDs between messages and arrays are what iteration gives."""

from array import array

import pytest

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.token_ids import add_token_ids, read_token_ids

COUNTS = [0, 1, 511, 512, 513, 100_000]


@pytest.mark.parametrize("count", COUNTS)
def test_read_gives_every_token_of_its_field_alone(count):
    token_ids = [(index * 2_654_435_761) % 2**32 for index in range(count)]
    message = engine_pb2.GenerateRequest(
        request_id="mine", prompt_token_ids=token_ids, resume_token_ids=[7] * 1000, priority=3
    )
    message.MergeFromString(b"\xf8\x3f\x01")  # a field of a newer client
    before = message.SerializeToString()

    assert read_token_ids(message, "prompt_token_ids") == array("I", token_ids)
    assert message.SerializeToString() == before


@pytest.mark.parametrize("count", COUNTS)
def test_add_appends_every_token(count):
    token_ids = array("i", range(count))
    message = engine_pb2.GenerateRequest(request_id="mine", prompt_token_ids=[9])

    assert add_token_ids(message, "prompt_token_ids", token_ids) is message

    assert list(message.prompt_token_ids) == [9, *token_ids]
    assert message.request_id == "mine"
