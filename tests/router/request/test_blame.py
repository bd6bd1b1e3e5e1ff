from array import array

import grpc
import pytest

from protos.wire.sampling_params import SamplingParams
from protos.wire.status import STATUS_CODES, ErrorStatus, Reason, code_number
from router.errors import EngineError
from router.request.blame import judged
from router.types.engine_events import TokenRequest
from tests.fakes.fake_fleet import model_info

MODEL = model_info(max_model_len=100, num_blocks=4, block_size=16)
"""Holds sequences of 65 tokens."""
RESUMED = array("i", [7])


def refusal(reason, *, code=None, field=None):
    number = code_number(code or STATUS_CODES[reason])
    metadata = {"field": field} if field else {}
    return EngineError(
        ErrorStatus(code=number, message="no", reason=reason, domain="e", metadata=metadata)
    )


def asked(num_tokens=3, max_tokens=None, resumed=(), timeout=None):
    return TokenRequest(
        request_id="r",
        model="small",
        prompt_token_ids=array("i", range(num_tokens)),
        resume_token_ids=array("i", resumed),
        sampling_params=SamplingParams(max_tokens=max_tokens),
        timeout=timeout,
    )


@pytest.mark.parametrize(
    ("error", "request_"),
    [
        (refusal(Reason.BAD_SAMPLING_PARAMS, field="temperature"), asked()),
        (refusal(Reason.UNSUPPORTED_PARAMETER, field="top_k"), asked()),
        (refusal(Reason.BAD_REQUEST, field="priority"), asked()),
        (refusal("NEW_REASON", code=grpc.StatusCode.INVALID_ARGUMENT), asked()),
        (refusal(Reason.PROMPT_TOO_LONG), asked(65)),
        (refusal(Reason.PROMPT_TOO_LONG), asked(60, max_tokens=6)),
        (refusal(Reason.DEADLINE_EXCEEDED), asked(timeout=1.0)),
        (refusal(Reason.QUEUE_FULL), asked(resumed=RESUMED)),
        (refusal(Reason.ENGINE_FAILED), asked()),
        (refusal(Reason.INTERNAL), asked()),
    ],
)
def test_what_lies_in_the_client_s_own_fields_or_in_no_field_passes_unchanged(error, request_):
    assert judged(error, request_, "e:1", MODEL) is error


@pytest.mark.parametrize(
    ("error", "request_"),
    [
        *((refusal(r), asked(resumed=RESUMED)) for r in (Reason.BAD_REQUEST, Reason.BAD_CHAT)),
        (refusal(Reason.BAD_SAMPLING_PARAMS, field="seed"), asked(resumed=RESUMED)),
        (refusal(Reason.PROMPT_TOO_LONG), asked(65, resumed=RESUMED)),
        (refusal(Reason.BAD_REQUEST, field="handle"), asked()),
        (refusal(Reason.EMPTY_PROMPT), asked()),
        (refusal(Reason.TOKEN_OUT_OF_RANGE), asked()),
        (refusal(Reason.PROMPT_TOO_LONG), asked(64)),
        (refusal(Reason.PROMPT_TOO_LONG), asked(60, max_tokens=5)),
        (refusal(Reason.UNKNOWN_MODEL), asked()),
        (refusal("", code=grpc.StatusCode.UNAUTHENTICATED), asked()),
        (refusal(Reason.DEADLINE_EXCEEDED), asked()),
    ],
)
def test_what_the_router_sent_or_checked_is_the_engine_s_failure(error, request_):
    status = judged(error, request_, "e:1", MODEL).status

    assert status.reason == Reason.ENGINE_FAILED
    assert status.code == code_number(grpc.StatusCode.UNAVAILABLE)
    assert status.message == "engine e:1 refused what the router sent: no"
    assert status.metadata["engine"] == "e:1"
