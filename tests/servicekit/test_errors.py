import pickle

from protos.wire.reason import Reason
from servicekit.errors import RequestError, StartupError


class TooHot(RequestError):
    domain = "kitchen.v1"
    reason = Reason.BAD_REQUEST


def test_error_of_a_request_survives_the_way_between_processes():
    error = TooHot("99 degrees", {"degrees": "99"}, reason=Reason.QUEUE_FULL, retry_after=2.0)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is TooHot
    assert (copy.message, str(copy), copy.metadata) == ("99 degrees", "99 degrees", error.metadata)
    assert (copy.reason, copy.retry_after, copy.domain) == (Reason.QUEUE_FULL, 2.0, "kitchen.v1")


def test_reason_is_the_class_s_unless_another_is_given():
    assert TooHot("so").reason is Reason.BAD_REQUEST
    assert RequestError("so").reason is Reason.INTERNAL


def test_error_at_start_survives_the_way_between_processes():
    copy = pickle.loads(pickle.dumps(StartupError("no tea")))

    assert (type(copy), copy.message) == (StartupError, "no tea")
