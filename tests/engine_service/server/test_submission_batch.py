"""Each submission of a router's message is taken or refused by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.server.submission_batch import (
    RefusedSubmission,
    SubmissionBatch,
    SubmissionBatchParser,
)
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.message_parser import Malformed
from protos.wire.wire_format import packed

parse = SubmissionBatchParser()


def handle(number):
    return b"\x0d" + number.to_bytes(4, "little")


def test_message_is_what_protobuf_makes_of_it():
    message = engine_pb2.GenerateManyRequest(
        submissions=[
            engine_pb2.Submission(
                handle=number, request=engine_pb2.GenerateRequest(prompt_token_ids=[number])
            )
            for number in range(1000)
        ],
        cancelled_handles=range(2000, 3000),
    )

    batch = parse(message.SerializeToString() + b"\xf8\x3f\x01")

    assert batch.submissions == list(message.submissions)
    assert list(batch.cancelled_handles) == list(message.cancelled_handles)
    assert parse(b"") == SubmissionBatch(cancelled_handles=[])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (packed(2, packed(1, b"\xff")), "request.request_id is not UTF-8"),
        (packed(2, packed(3, packed(14, b"") * 1025)), "logit_bias has 1025 entries"),
        (packed(2, packed(3, packed(14, b"") * 100_000)), "logit_bias has at least 1025 entries"),
        (packed(4, b"t" * 257), "traceparent has 257 bytes"),
        (b"\x0f\x01", "cannot be parsed"),
    ],
)
def test_submission_that_cannot_be_taken_is_refused_alone(content, text):
    good = packed(1, handle(1))
    batch = parse(good + packed(1, handle(7) + content) + good)

    assert [type(one) for one in batch.submissions] == [
        engine_pb2.Submission,
        RefusedSubmission,
        engine_pb2.Submission,
    ]
    refused = batch.submissions[1]
    assert refused.handle == 7
    assert text in refused.malformed.text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (packed(1, b"") * 1025, "submissions has at least 1025 entries"),
        (packed(1, b"") * 1_000_000, "submissions has at least 1025 entries"),
        (b"\x15\0\0\0\0" * 1_000_000, "at least 1025 fields are unknown or not packed"),
        (packed(2, bytes(4 * 4097)), "cancelled_handles has 4097 entries"),
        (packed(1, packed(2, packed(1, b"\xff"))), "request.request_id is not UTF-8"),
        (packed(1, b"\x18\x01" * 100_000 + handle(1)), "at least 1025 fields"),
        (packed(1, b"abc")[:-1], "its encoding is invalid"),
        (b"\xff" * 100, "its encoding is invalid"),
    ],
)
def test_message_whose_fault_is_nobody_s_is_refused_as_a_whole(content, text):
    refused = parse(content)
    assert isinstance(refused, Malformed)
    assert text in refused.text


@given(st.binary(max_size=100))
def test_any_bytes_are_a_batch_or_refused(content):
    assert isinstance(parse(content), SubmissionBatch | Malformed)
