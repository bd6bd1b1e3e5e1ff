"""Error statuses, and the one table from error reason to gRPC status code.

A google.rpc.ErrorInfo carries the reason, with a RetryInfo if waiting helps. So a client in any
language can tell apart errors with the same code.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from protos.wire.reason import Reason as Reason

STATUS_CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.EMPTY_PROMPT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TOKEN_OUT_OF_RANGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_SAMPLING_PARAMS: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNSUPPORTED_PARAMETER: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_CHAT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Reason.NO_TOKENIZER: grpc.StatusCode.NOT_FOUND,
    Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.SLOW_READER: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.STARTING: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.EPOCH_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NO_ENGINE: grpc.StatusCode.UNAVAILABLE,
    Reason.ENGINE_FAILED: grpc.StatusCode.UNAVAILABLE,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}

# A client drops a status of more than 8 KiB, and with it code and reason. The status contains the
# message twice, up to three and 4/3 times as long as it is, and each metadata value once.
_MAX_MESSAGE_BYTES = 1024
_MAX_VALUE_BYTES = 512
_MAX_METADATA_BYTES = 2048
_MAX_METADATA_ENTRIES = 16
_MAX_KEY_BYTES = 64
_MAX_DOMAIN_BYTES = 128
_REASON = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_MAX_DETAILS = 16
"""Details of a status that are examined; ours has two."""
_MAX_DETAIL_BYTES = 64 * 1024
"""Largest detail that is parsed; its strings would be cut anyway."""
_MAX_RETRY_SECONDS = 3600.0

_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]
_ERROR_CODES = frozenset(
    code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStatus:
    """The content of a google.rpc.Status.

    Attributes:
        code: The number of a google.rpc.Code.
        message: For a developer.
        reason: One of `Reason`, another name from a newer or foreign server, or empty.
        domain: The domain of the reason, such as "pagestream.engine.v1".
        metadata: Every number and name of the message.
        retry_after: Seconds after which the same call may succeed, or None.
    """

    code: int
    message: str
    reason: str = ""
    domain: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None


def code_number(code: grpc.StatusCode) -> int:
    """Returns the number of a code, which `grpc.StatusCode` keeps in a tuple."""
    number: int = code.value[0]
    return number


def error_status(
    reason: Reason,
    message: str,
    *,
    domain: str,
    metadata: Mapping[str, str] | None = None,
    retry_after: float | None = None,
) -> ErrorStatus:
    """Builds the status for a reason, with the code from the table.

    Strings too long for a call's trailers are cut: they may quote what a client sent.
    """
    return _bounded(
        ErrorStatus(
            code=code_number(STATUS_CODES[reason]),
            message=message,
            reason=reason.value,
            domain=domain,
            metadata=metadata or {},
            retry_after=retry_after,
        )
    )


def cut(text: str, max_bytes: int = _MAX_MESSAGE_BYTES) -> str:
    """Returns a text cut to so many bytes of UTF-8, with an ellipsis if it was longer."""
    # A character has at least one byte, so never encode more characters than bytes may stay.
    content = text[: max_bytes + 1].encode(errors="replace")
    if len(content) <= max_bytes:
        return content.decode()
    return content[:max_bytes].decode(errors="ignore") + "…"


def _bounded(status: ErrorStatus) -> ErrorStatus:
    metadata: dict[str, str] = {}
    num_bytes = 0
    for key in islice(status.metadata, _MAX_METADATA_ENTRIES):
        name, value = cut(key, _MAX_KEY_BYTES), cut(status.metadata[key], _MAX_VALUE_BYTES)
        num_bytes += len(name.encode()) + len(value.encode())
        if num_bytes > _MAX_METADATA_BYTES:
            break
        metadata[name] = value
    return ErrorStatus(
        code=status.code if status.code in _ERROR_CODES else _UNKNOWN,
        message=cut(status.message),
        # Part of a name would be another name.
        reason=status.reason if _REASON.fullmatch(status.reason) else "",
        domain=cut(status.domain, _MAX_DOMAIN_BYTES),
        metadata=metadata,
        retry_after=status.retry_after,
    )


def pack_details(error: ErrorStatus) -> list[any_pb2.Any]:
    """Returns the details of a google.rpc.Status: ErrorInfo, and RetryInfo if waiting helps."""
    messages: list[ErrorInfo | RetryInfo] = []
    if error.reason:
        messages.append(
            ErrorInfo(reason=error.reason, domain=error.domain, metadata=dict(error.metadata))
        )
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(1e9 * min(error.retry_after, _MAX_RETRY_SECONDS)))
        messages.append(RetryInfo(retry_delay=delay))
    details = []
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)
    return details


def unpack(code: int, message: str, details: Iterable[any_pb2.Any]) -> ErrorStatus:
    """Reads a status from a peer, whatever it contains; never raises.

    Strings are cut as in our own statuses. An invalid code, or OK, becomes UNKNOWN. Ignored are
    details of other kinds, unparsable, over 64 KiB or after the first 16, and also invalid reasons
    and delays below zero. A delay above an hour becomes an hour.
    """
    info = ErrorInfo()
    retry = RetryInfo()
    for detail in islice(details, _MAX_DETAILS):
        if not _parse(detail, info):
            _parse(detail, retry)
    retry_after = None
    if retry.HasField("retry_delay"):
        seconds = retry.retry_delay.seconds + 1e-9 * retry.retry_delay.nanos
        if seconds >= 0:
            retry_after = min(seconds, _MAX_RETRY_SECONDS)
    return _bounded(
        ErrorStatus(
            code=code,
            message=message,
            reason=info.reason,
            domain=info.domain,
            metadata=info.metadata,
            retry_after=retry_after,
        )
    )


def _parse(detail: any_pb2.Any, into: "ErrorInfo | RetryInfo") -> bool:
    """Parses a detail into a message; returns whether the detail is of that message's type."""
    if not detail.Is(into.DESCRIPTOR):
        return False
    if len(detail.value) <= _MAX_DETAIL_BYTES:
        parsed = type(into)()
        try:
            parsed.ParseFromString(detail.value)
        except DecodeError:
            return True
        into.CopyFrom(parsed)
    return True


def to_rpc_status(error: ErrorStatus) -> status_pb2.Status:
    """Returns the google.rpc.Status that ends a call (`grpc_status.rpc_status`)."""
    return status_pb2.Status(code=error.code, message=error.message, details=pack_details(error))
