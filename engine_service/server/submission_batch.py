"""Parses one message of a router; each submission is accepted or refused separately."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.limits import MAX_SUBMISSIONS
from protos.wire.message_parser import MAX_SURPLUS_FIELDS, Malformed, MessageParser
from protos.wire.wire_format import BYTES, FIXED32, BadWireFormat, read_fields

_FIELDS = engine_pb2.GenerateManyRequest.DESCRIPTOR.fields_by_name
_SUBMISSIONS = _FIELDS["submissions"].number
_MAX_FIELDS_BEFORE_HANDLE = 16
_HANDLE = engine_pb2.Submission.DESCRIPTOR.fields_by_name["handle"].number


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSubmission:
    """A submission that was refused but whose handle is known."""

    handle: int
    malformed: Malformed


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionBatch:
    """A GenerateManyRequest."""

    epoch: int = 0
    cancelled_handles: Sequence[int] = ()
    submissions: list[engine_pb2.Submission | RefusedSubmission] = field(default_factory=list)


class SubmissionBatchParser:
    """Parses GenerateManyRequest; a gRPC deserializer that never raises.

    Each submission is parsed as a separate message, so that one that exceeds a bound does not end
    the whole stream.
    """

    def __init__(self) -> None:
        self._parse_submission = MessageParser(engine_pb2.Submission)
        self._parse_rest = MessageParser(engine_pb2.GenerateManyRequest)

    def __call__(self, data: bytes) -> SubmissionBatch | Malformed:
        """Returns the message's content, or why the whole message is refused."""
        try:
            submissions, rest = _split(data)
        except (BadWireFormat, _TooMany) as error:
            name = engine_pb2.GenerateManyRequest.DESCRIPTOR.full_name
            why = str(error) or "its encoding is invalid"
            return Malformed(
                text=f"a message of {len(data)} bytes cannot be parsed as {name}: {why}",
                metadata={"field": name, "value": f"{len(data)} bytes"},
            )
        others = self._parse_rest(rest)
        if isinstance(others, Malformed):
            return others
        batch = SubmissionBatch(epoch=others.epoch, cancelled_handles=others.cancelled_handles)
        for content in submissions:
            submission = self._parse_submission(content)
            if not isinstance(submission, Malformed):
                batch.submissions.append(submission)
                continue
            handle = _read_handle(content)
            if handle is None:
                return submission
            batch.submissions.append(RefusedSubmission(handle=handle, malformed=submission))
        return batch


class _TooMany(Exception):
    pass


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Returns the contents of all submissions, and the fields beside them."""
    submissions = []
    rest = []
    start = 0
    for number, wire_type, begin, end in read_fields(data, 0, len(data)):
        if (number, wire_type) == (_SUBMISSIONS, BYTES):
            submissions.append(data[begin:end])
        else:
            rest.append(data[start:end])
        start = end
        if len(submissions) > MAX_SUBMISSIONS:
            raise _TooMany(
                f"submissions has at least {len(submissions)} entries, the most allowed is "
                f"{MAX_SUBMISSIONS}"
            )
        if len(rest) > MAX_SURPLUS_FIELDS:
            raise _TooMany(
                f"at least {len(rest)} fields are unknown or not packed, the most allowed is "
                f"{MAX_SURPLUS_FIELDS}"
            )
    return submissions, b"".join(rest)


def _read_handle(content: bytes) -> int | None:
    """Returns the handle of a submission that cannot be parsed, if it is near its beginning."""
    try:
        fields = read_fields(content, 0, len(content))
        for number, wire_type, begin, end in islice(fields, _MAX_FIELDS_BEFORE_HANDLE):
            if (number, wire_type) == (_HANDLE, FIXED32):
                return int.from_bytes(content[begin:end], "little")
    except BadWireFormat:
        pass
    return None
