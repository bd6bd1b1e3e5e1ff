"""The error reasons and the one table from reason to gRPC status code.

A reason travels in a google.rpc.ErrorInfo, beside a RetryInfo where waiting helps, so that a
client of any language can tell errors of one code apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from protos.wire.reason import Reason as Reason

STATUS_CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.EMPTY_PROMPT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TOKEN_OUT_OF_RANGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_SAMPLING_PARAMS: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNSUPPORTED_PARAMETER: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_CHAT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Reason.NO_TOKENIZER: grpc.StatusCode.NOT_FOUND,
    Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.SLOW_READER: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.STARTING: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.NO_ENGINE: grpc.StatusCode.UNAVAILABLE,
    Reason.ENGINE_FAILED: grpc.StatusCode.UNAVAILABLE,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}

# A client drops a status of more than 8 KiB, and with it code and reason. The message travels in
# it twice, up to three and 4/3 times as long as it is; a value of the metadata once.
_MAX_MESSAGE_BYTES = 1024
_MAX_VALUE_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStatus:
    """What a google.rpc.Status of ours says.

    Attributes:
        code: The number of a google.rpc.Code.
        message: For a developer.
        reason: One of `Reason`, or another text from a newer or foreign server, or empty.
        domain: Whose reason it is, such as "pagestream.engine.v1".
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
    """Builds the status of a reason with the code that the table gives it.

    Texts that a call's trailers could not carry are cut: they may quote what a client sent.
    """
    return ErrorStatus(
        code=code_number(STATUS_CODES[reason]),
        message=_cut(message, _MAX_MESSAGE_BYTES),
        reason=reason.value,
        domain=domain,
        metadata={key: _cut(value, _MAX_VALUE_BYTES) for key, value in (metadata or {}).items()},
        retry_after=retry_after,
    )


def _cut(text: str, max_bytes: int) -> str:
    content = text.encode(errors="replace")
    if len(content) <= max_bytes:
        return text
    return content[:max_bytes].decode(errors="ignore") + "…"


def pack_details(error: ErrorStatus) -> list[any_pb2.Any]:
    """Returns the details of a google.rpc.Status: ErrorInfo, and RetryInfo if waiting helps."""
    messages: list[error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo] = []
    if error.reason:
        messages.append(
            error_details_pb2.ErrorInfo(
                reason=error.reason, domain=error.domain, metadata=dict(error.metadata)
            )
        )
    if error.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(timedelta(seconds=error.retry_after))
        messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details = []
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)
    return details


def unpack(code: int, message: str, details: Sequence[any_pb2.Any]) -> ErrorStatus:
    """Reads a status back; details of other kinds are passed over."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return ErrorStatus(
        code=code,
        message=message,
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        retry_after=retry_after,
    )


def to_rpc_status(error: ErrorStatus) -> status_pb2.Status:
    """Returns the google.rpc.Status that a call ends with (`grpc_status.rpc_status`)."""
    return status_pb2.Status(code=error.code, message=error.message, details=pack_details(error))
