"""Each error has one code and one reason: in the table, the error tree, the proto's comments."""

import re
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status

from engine_service import errors as engine_errors
from engine_service.errors import DOMAIN
from protos.wire.status import STATUS_CODES, Reason, pack_details, to_rpc_status, unpack
from servicekit.errors import ServiceError
from servicekit.status import to_error_status

PROTO = Path(__file__).parents[2] / "protos" / "pagestream" / "engine" / "v1" / "engine.proto"

CODES = {
    "BAD_REQUEST": "INVALID_ARGUMENT",
    "EMPTY_PROMPT": "INVALID_ARGUMENT",
    "PROMPT_TOO_LONG": "INVALID_ARGUMENT",
    "TOKEN_OUT_OF_RANGE": "INVALID_ARGUMENT",
    "BAD_SAMPLING_PARAMS": "INVALID_ARGUMENT",
    "UNSUPPORTED_PARAMETER": "INVALID_ARGUMENT",
    "BAD_CHAT": "INVALID_ARGUMENT",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    "UNKNOWN_MODEL": "NOT_FOUND",
    "NO_TOKENIZER": "NOT_FOUND",
    "QUEUE_FULL": "RESOURCE_EXHAUSTED",
    "RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "SLOW_READER": "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "STARTING": "UNAVAILABLE",
    "DRAINING": "UNAVAILABLE",
    "EPOCH_MISMATCH": "FAILED_PRECONDITION",
    "NO_ENGINE": "UNAVAILABLE",
    "ENGINE_FAILED": "UNAVAILABLE",
    "INTERNAL": "INTERNAL",
}

ENGINE_REASONS = {
    "InvalidRequest": "BAD_REQUEST",
    "QueueFull": "QUEUE_FULL",
    "SlowReader": "SLOW_READER",
    "DeadlineExceeded": "DEADLINE_EXCEEDED",
    "Starting": "STARTING",
    "Draining": "DRAINING",
    "EpochMismatch": "EPOCH_MISMATCH",
    "EngineFailed": "ENGINE_FAILED",
    "NoTokenizer": "NO_TOKENIZER",
}


def test_table_is_the_released_one():
    table = {reason.value: code.name for reason, code in STATUS_CODES.items()}
    assert table == CODES
    assert set(STATUS_CODES) == set(Reason)


def test_each_error_of_the_engine_has_its_released_reason():
    kinds = engine_errors.RequestError.__subclasses__()
    assert {kind.__name__: kind.reason.value for kind in kinds} == ENGINE_REASONS


def test_error_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"[├└]── (\w+)", engine_errors.__doc__))
    existing = {
        name
        for name, value in vars(engine_errors).items()
        if isinstance(value, type) and issubclass(value, ServiceError)
    }
    assert drawn == existing


@pytest.mark.parametrize("reason", Reason)
def test_status_survives_the_wire(reason):
    error = engine_errors.RequestError("said", {"n": "1"}, reason=reason, retry_after=0.5)
    status = to_rpc_status(to_error_status(error))
    read = unpack(status.code, status.message, status.details)
    assert read == to_error_status(error)
    assert (read.reason, read.domain, read.metadata) == (reason.value, DOMAIN, {"n": "1"})
    assert grpc.StatusCode[CODES[reason.value]].value[0] == read.code


def test_waiting_is_advised_only_where_asked_for():
    error = engine_errors.SlowReader("read faster")
    assert len(pack_details(to_error_status(error))) == 1


def test_codes_beside_reasons_in_the_contract_agree_with_the_table():
    comments = re.sub(r"\s*//\s*", " ", PROTO.read_text("utf-8"))
    claims = re.findall(
        r"\b([A-Z]+(?:_[A-Z]+)*) \(((?:[A-Z]+_[A-Z_]+|STARTING|DRAINING)[^)]*)\)", comments
    )
    pairs = {
        (reason, code)
        for code, reasons in claims
        for reason in re.findall(r"[A-Z]+(?:_[A-Z]+)*", reasons)
        if reason in CODES
    }
    assert len(pairs) >= 10
    for reason, code in pairs:
        assert CODES[reason] == code


@pytest.mark.parametrize("character", ["n", "\x00", "é", "\U0001f600", "%"])
def test_status_that_quotes_a_huge_value_fits_into_the_trailers_of_a_call(character):
    huge = character * 1_000_000
    error = engine_errors.InvalidRequest(f"model {huge}", {"model": huge, "field": huge})

    final = rpc_status.to_status(to_rpc_status(to_error_status(error)))

    # As gRPC counts: percent-encoded and base64 without padding, keys, and 32 bytes each.
    message = "".join(
        chr(byte) if 32 <= byte < 127 and byte != 37 else "%00" for byte in final.details.encode()
    )
    ((key, details),) = final.trailing_metadata
    assert len(message) + len(key) + len(details) * 4 / 3 + 200 < 8192
    read = unpack(3, final.details, [])
    assert read.message.startswith("model " + character * 50)
    assert read.message.endswith("…")
