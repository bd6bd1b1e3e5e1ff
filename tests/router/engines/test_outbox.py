"""What goes up to an engine is never more than an engine receives."""

import pytest

from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2
from protos.wire.channel import (
    ENGINE_REQUEST_BYTES,
    MAX_SUBMISSION_BYTES,
    router_request_bytes,
)
from protos.wire.field_bounds import FIELD_BOUNDS
from protos.wire.limits import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_CANCELLED_HANDLES,
    MAX_CHOICE_BYTES,
    MAX_CHOICES,
    MAX_LABEL_BYTES,
    MAX_LOGIT_BIASES,
    MAX_SEQUENCE_TOKENS,
    MAX_STOP_TEXTS,
    MAX_STOP_TOKEN_IDS,
    MAX_SUBMISSIONS,
    MAX_TRACEPARENT_BYTES,
    MAX_TRACESTATE_BYTES,
)
from protos.wire.message_parser import MessageParser
from router.engines.outbox import Outbox
from router.errors import InvalidRequest


def submission(handle, num_tokens=1):
    request = engine_pb2.GenerateRequest(prompt_token_ids=[1] * num_tokens)
    return engine_pb2.Submission(handle=handle, request=request)


def largest_submission():
    """Every field at its bound, each number at its longest."""
    params = engine_pb2.SamplingParams(
        stop_token_ids=[2**32 - 1] * MAX_STOP_TOKEN_IDS,
        logit_bias=[engine_pb2.LogitBias(token_id=1, bias=1.0)] * MAX_LOGIT_BIASES,
        ignore_eos=True,
    )
    for field in params.DESCRIPTOR.fields:
        if field.has_presence and field.message_type is None:
            is_float = field.cpp_type == field.CPPTYPE_FLOAT
            setattr(params, field.name, 1.5 if is_float else -1)
    request = engine_pb2.GenerateRequest(
        request_id="r" * MAX_LABEL_BYTES,
        prompt_token_ids=[1] * MAX_SEQUENCE_TOKENS,
        resume_token_ids=[1] * MAX_SEQUENCE_TOKENS,
        sampling_params=params,
        priority=-1,
        cache_salt="s" * MAX_LABEL_BYTES,
    )
    largest = engine_pb2.Submission(
        handle=2**32 - 1,
        request=request,
        traceparent="t" * MAX_TRACEPARENT_BYTES,
        tracestate="t" * MAX_TRACESTATE_BYTES,
    )
    largest.timeout.seconds, largest.timeout.nanos = 315_576_000_000, 999_999_999
    return largest


def test_largest_submission_within_the_bounds_is_sent_and_fits_the_engine():
    largest = largest_submission()
    outbox = Outbox()
    for number in range(MAX_CANCELLED_HANDLES + 1):
        outbox.cancel(number)
    outbox.submit(largest)

    message = outbox.take()

    assert list(message.submissions) == [largest]
    assert len(message.cancelled_handles) == MAX_CANCELLED_HANDLES
    assert message.ByteSize() <= ENGINE_REQUEST_BYTES
    assert MessageParser(engine_pb2.Submission)(largest.SerializeToString()) == largest


def test_submission_that_no_engine_receives_is_refused_and_not_sent():
    outbox = Outbox()
    outbox.submit(submission(1))
    too_large = submission(2, num_tokens=MAX_SUBMISSION_BYTES // 4 + 1)

    with pytest.raises(InvalidRequest, match=f"over the limit of {MAX_SUBMISSION_BYTES}") as caught:
        outbox.submit(too_large)

    assert caught.value.status.metadata["value"] == str(too_large.ByteSize())
    assert [one.handle for one in outbox.take().submissions] == [1]
    assert not outbox.filled.is_set()


def test_everything_is_sent_once_in_order_in_messages_within_bounds():
    outbox = Outbox()
    handles = list(range(1, 3 * MAX_SUBMISSIONS))
    for handle in handles:
        outbox.submit(submission(handle, num_tokens=50_000 if handle % 500 == 0 else 1))
    cancelled = list(range(5000, 5000 + 2 * MAX_CANCELLED_HANDLES + 1))
    for handle in cancelled:
        outbox.cancel(handle)

    messages = []
    while outbox.filled.is_set():
        messages.append(outbox.take())

    assert [one.handle for message in messages for one in message.submissions] == handles
    assert [handle for message in messages for handle in message.cancelled_handles] == cancelled
    for message in messages:
        assert len(message.submissions) <= MAX_SUBMISSIONS
        assert len(message.cancelled_handles) <= MAX_CANCELLED_HANDLES
        assert message.ByteSize() <= 2 << 20


def test_request_cancelled_before_it_was_sent_is_never_sent():
    outbox = Outbox()
    outbox.submit(submission(1))
    outbox.submit(submission(2))
    outbox.cancel(1)

    message = outbox.take()

    assert [one.handle for one in message.submissions] == [2]
    assert not message.cancelled_handles


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
def test_what_a_client_may_send_an_engine_takes(field):
    assert (
        FIELD_BOUNDS[f"pagestream.router.v1.SamplingParams.{field}"]
        == FIELD_BOUNDS[f"pagestream.engine.v1.SamplingParams.{field}"]
    )


@pytest.mark.parametrize("max_prompt_bytes", [1, 4 << 20, 8 << 20])
def test_router_receives_the_largest_prompt_in_every_form(max_prompt_bytes):
    limit = router_request_bytes(max_prompt_bytes)
    params = router_pb2.SamplingParams(
        stop_token_ids=[1] * MAX_STOP_TOKEN_IDS,
        logit_bias=[router_pb2.LogitBias(token_id=1, bias=1.0)] * MAX_LOGIT_BIASES,
        allowed_token_ids=[1] * MAX_ALLOWED_TOKEN_IDS,
        stop=["x" * MAX_LABEL_BYTES] * MAX_STOP_TEXTS,
        bad_words=["x" * 4 * MAX_BAD_WORD_CHARACTERS] * MAX_BAD_WORDS,
        grammar=router_pb2.Grammar(
            choice=router_pb2.Choice(texts=["x" * MAX_CHOICE_BYTES] * MAX_CHOICES)
        ),
    )
    labels = {"request_id": "r" * 1024, "model": "m" * 1024, "cache_salt": "s" * 1024}
    size = max(1, max_prompt_bytes // 4096)
    messages = [router_pb2.ChatMessage(role="assistant", content="x" * size)] * 4096
    for prompt in (
        {"text": "x" * max_prompt_bytes},
        {"chat": router_pb2.Chat(messages=messages)},
        {"token_ids": router_pb2.TokenIds(ids=[1] * MAX_SEQUENCE_TOKENS)},
    ):
        request = router_pb2.GenerateRequest(**prompt, **labels, sampling_params=params)
        assert request.ByteSize() <= limit
        assert limit < max(max_prompt_bytes, 4 << 20) + params.ByteSize() + (2 << 20)
