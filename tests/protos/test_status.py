"""What a peer's status may hold, and what is made of it."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from protos.wire.status import ErrorStatus, cut, pack_details, to_rpc_status, unpack

UNKNOWN = grpc.StatusCode.UNKNOWN.value[0]


def packed(message):
    detail = Any()
    detail.Pack(message)
    return detail


def retry(seconds, nanos=0):
    return packed(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))


@pytest.mark.parametrize("kind", ["google.rpc.ErrorInfo", "google.rpc.RetryInfo", "x.Y", ""])
def test_detail_that_cannot_be_parsed_is_passed_over(kind):
    broken = Any(type_url=f"type.googleapis.com/{kind}", value=b"\xff\xff\xff")

    status = unpack(8, "full", [broken, packed(ErrorInfo(reason="QUEUE_FULL")), retry(2)])

    assert status == ErrorStatus(code=8, message="full", reason="QUEUE_FULL", retry_after=2.0)


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (0, 500_000_000, 0.5),
        (3600, 0, 3600.0),
        (10**18, 0, 3600.0),
        (2**63 - 1, 2**31 - 1, 3600.0),
        (-5, 0, None),
        (-(2**63), -(2**31), None),
        (1, -(2**31), None),
    ],
)
def test_delay_is_bounded_and_one_below_zero_is_none(seconds, nanos, expected):
    status = unpack(8, "", [retry(seconds, nanos)])

    assert status.retry_after == expected
    assert unpack(8, "", pack_details(status)).retry_after == expected


def test_retry_without_a_delay_is_none():
    assert unpack(8, "", [packed(RetryInfo())]).retry_after is None


@pytest.mark.parametrize("code", [0, -1, 17, 2**31 - 1, -(2**31)])
def test_code_of_no_error_is_unknown(code):
    assert unpack(code, "x", []).code == UNKNOWN


@pytest.mark.parametrize("reason", ["", "A" * 65, "QUEUE_FULL\nFORGED", "a b", "\x1b[31m"])
def test_reason_that_is_no_name_is_none(reason):
    assert unpack(8, "x", [packed(ErrorInfo(reason=reason))]).reason == ""


def test_large_texts_are_cut_and_the_status_fits_into_the_trailers_of_a_call():
    info = ErrorInfo(
        reason="R" * 64,
        domain="d" * 500,
        metadata={f"{n}{'k' * 200}": "v" * 700 for n in range(40)},
    )

    status = unpack(3, "m" * (20 << 20), [packed(info)])

    assert status.message == "m" * 1024 + "…"
    assert len(status.domain) < 140
    assert 1 <= len(status.metadata) <= 16
    assert sum(len(k) + len(v) for k, v in status.metadata.items()) < 2100
    final = rpc_status.to_status(to_rpc_status(status))
    ((_, content),) = final.trailing_metadata
    assert len(final.details) + len(content) * 4 / 3 + 200 < 8192


def test_details_that_are_large_or_many_are_not_parsed():
    large = packed(ErrorInfo(reason="LARGE", metadata={"k": "v" * 70_000}))
    late = [packed(ErrorInfo(reason="LATE"))]

    assert unpack(3, "x", [large]).reason == ""
    assert unpack(3, "x", [Any()] * 16 + late).reason == ""
    assert unpack(3, "x", [Any()] * 15 + late).reason == "LATE"


@pytest.mark.parametrize("character", ["n", "é", "\U0001f600", "\ud800"])
def test_text_is_cut_to_whole_characters(character):
    text = cut(character * 100, 10)

    assert len(text.removesuffix("…").encode()) in range(8, 11)
    assert cut("ab", 2) == "ab"
