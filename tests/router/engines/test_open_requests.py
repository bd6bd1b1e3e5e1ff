"""What an engine may say of the requests of one connection, and what it may not."""

from array import array

import pytest

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.sampling_params import Grammar, SamplingParams
from protos.wire.status import Reason, error_status
from router.engines.connection_loss import ConnectionLost, Fault
from router.engines.open_requests import OpenRequests
from router.errors import Draining, EngineError
from router.types.engine_events import Finished, FinishReason, TokenRequest
from tests.fakes.fake_fleet import model_info
from tests.fakes.hostile_engine import admission, failure, finish, tokens_of
from tests.router.fleets import rest_of

STOP = engine_pb2.FINISH_REASON_STOP
MODEL = model_info(vocab_size=600, max_model_len=128, num_blocks=100, eos_token_ids=frozenset({1}))


def opened(model=MODEL, max_buffered_tokens=1000, on_idle=lambda: None):
    return OpenRequests(
        "e:1", model, max_open=10, max_buffered_tokens=max_buffered_tokens, on_idle=on_idle
    )


def request(num_prompt=4, resumed=(), **params):
    return TokenRequest(
        request_id="r",
        model="small",
        prompt_token_ids=array("i", range(num_prompt)),
        resume_token_ids=array("i", resumed),
        sampling_params=SamplingParams(**({"max_tokens": 5} | params)),
    )


def say(requests, *steps):
    for step in steps:
        requests.deliver(step)


def check_violation(requests, step, text):
    with pytest.raises(ConnectionLost, match=text) as raised:
        requests.deliver(step)
    assert raised.value.fault is Fault.VIOLATION


def sent(requests, **fields):
    """Submits a request, as if it had been sent; returns its stream."""
    stream = requests.submit(request(**fields))
    requests.outbox.take()
    return stream


async def test_tokens_up_to_the_bound_of_the_request_are_delivered():
    requests = opened()
    stream = sent(requests)
    say(requests, admission(1, 4), tokens_of(1, [7, 599]), tokens_of(1, [0, 1, 2]), finish(1))

    admitted, *rest = await rest_of(stream)
    assert (admitted.num_cached_tokens, admitted.seed) == (4, 7)
    assert [event.token_ids for event in rest[:-1]] == [[7, 599, 0, 1, 2]]
    assert rest[-1] == Finished(reason=FinishReason.LENGTH)
    assert len(requests) == 0


@pytest.mark.parametrize(
    ("fields", "num_possible"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "resumed": [9, 9]}, 3),
        ({"max_tokens": 5, "resumed": [9] * 5}, 0),
        ({"max_tokens": None}, 124),
        ({"max_tokens": None, "resumed": [9] * 24}, 100),
        ({"max_tokens": 1000}, 124),
    ],
)
async def test_length_is_the_request_s_or_the_model_s(fields, num_possible):
    requests = opened()
    for _ in range(3):
        sent(requests, **fields)
    say(requests, admission(1), admission(2), admission(3))
    if num_possible:
        say(requests, tokens_of(1, [5] * num_possible), tokens_of(3, [5] * (num_possible - 1)))
        check_violation(requests, finish(3), "finished by length, 1 tokens too early")
    say(requests, finish(1))

    check_violation(requests, tokens_of(2, [5] * (num_possible + 1)), f"over {num_possible},")


async def test_model_s_length_is_that_of_its_blocks_if_they_are_few():
    requests = opened(model_info(max_model_len=128, num_blocks=2, block_size=16))
    sent(requests, max_tokens=None)
    say(requests, admission(1), tokens_of(1, [5] * 29), finish(1))


@pytest.mark.parametrize(
    ("params", "token_id", "is_right"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"ignore_eos": True}, 1, False),
        ({"ignore_eos": True, "grammar": Grammar(form="json_object")}, 1, True),
        ({"stop_token_ids": (2, 3)}, 3, True),
        ({"stop_token_ids": (1,), "ignore_eos": True}, 1, True),
    ],
)
async def test_stop_is_at_a_token_that_ends_the_request(params, token_id, is_right):
    requests = opened()
    stream = sent(requests, **params)
    say(requests, admission(1), tokens_of(1, [9, token_id]))
    end = finish(1, STOP, stop_token_id=token_id)
    if not is_right:
        check_violation(requests, end, f"stopped at token {token_id}")
        assert len(requests) == 1
        return
    say(requests, end)

    (*_, finished) = await rest_of(stream)
    assert finished == Finished(reason=FinishReason.STOP, stop_token_id=token_id)


async def test_request_that_its_resumed_tokens_end_needs_no_admission():
    requests = opened()
    full = sent(requests, resumed=[9] * 5)
    stopped = sent(requests, resumed=[9, 1])
    say(requests, finish(1), finish(2, STOP, stop_token_id=1))

    assert await rest_of(full) == [Finished(reason=FinishReason.LENGTH)]
    assert [event.stop_token_id for event in await rest_of(stopped)] == [1]
    sent(requests, resumed=[9, 1], stop_token_ids=(3,))
    check_violation(requests, finish(3, STOP, stop_token_id=3), "which was never sent")


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
async def test_seed_is_the_one_asked_for(seed):
    requests = opened()
    sent(requests, seed=seed)
    sent(requests, seed=seed)
    say(requests, admission(1, 0, seed))
    check_violation(requests, admission(2, 0, seed ^ 1), "was requested")


async def test_late_words_of_a_cancelled_request_are_passed_over():
    requests = opened(max_buffered_tokens=2)
    early = sent(requests)
    running = sent(requests)
    say(requests, admission(2), tokens_of(2, [7]))
    early.close()
    running.close()

    say(requests, admission(1), tokens_of(2, [7] * 4), tokens_of(1, [7] * 5))
    say(requests, finish(1), failure(2, 4))
    # Two more events could still have been under way.
    say(requests, admission(2))
    check_violation(requests, tokens_of(1, [7]), "which has ended")


async def test_reader_that_is_cut_off_makes_its_late_tokens_no_violation():
    requests = opened(max_buffered_tokens=2)
    sent(requests, max_tokens=50)
    say(requests, admission(1), tokens_of(1, [7] * 3), tokens_of(1, [7]))
    assert not len(requests)

    say(requests, tokens_of(1, [7] * 46), finish(1))


async def test_request_cancelled_before_it_was_sent_can_have_no_late_words():
    requests = opened()
    requests.submit(request()).close()
    check_violation(requests, admission(1), "which has ended")


@pytest.mark.parametrize("handle", [0, 2, 2**32 - 1])
async def test_word_of_a_handle_that_was_never_issued_is_a_violation(handle):
    requests = opened()
    sent(requests)
    for step in (admission(handle), tokens_of(handle, [1]), finish(handle), failure(handle, 13)):
        check_violation(requests, step, f"request {handle}, which was never sent")


async def test_one_token_out_of_range_keeps_the_whole_step_back():
    requests = opened()
    streams = [sent(requests), sent(requests)]
    say(requests, admission(1), admission(2))
    step = engine_pb2.GenerateManyResponse(
        handles=[1, 2], token_counts=[1, 1], token_ids=[5, MODEL.vocab_size]
    )
    check_violation(requests, step, "token 600 is outside 0 to 599")
    requests.lose_all(error_status(Reason.ENGINE_FAILED, "lost", domain="d"))

    for stream in streams:
        await anext(stream)
        with pytest.raises(EngineError):
            await anext(stream)


async def test_large_step_is_counted_before_it_is_unpacked():
    model = model_info(max_model_len=10**9, num_blocks=10**8)
    requests = opened(model, max_buffered_tokens=20_000)
    for _ in range(4):
        sent(requests, max_tokens=None)
    say(requests, *(admission(handle) for handle in (1, 2, 3, 4)))
    most = engine_pb2.GenerateManyResponse(
        handles=[1, 2, 3, 4], token_counts=[20_000] * 4, token_ids=[5] * 80_000
    )
    say(requests, most)
    check_violation(requests, tokens_of(1, [5] * 150_000), "150000 tokens in one step")


@pytest.mark.parametrize(
    "end",
    [
        lambda requests, _: say(requests, admission(2), tokens_of(2, [0] * 5), finish(2)),
        lambda requests, _: say(requests, failure(2, 8)),
        lambda _, stream: stream.close(),
        lambda requests, _: requests.end_all(Draining("over")),
        lambda requests, _: requests.lose_all(error_status(Reason.ENGINE_FAILED, "", domain="d")),
    ],
    ids=["finish", "failure", "close", "end_all", "lose_all"],
)
async def test_end_of_the_last_request_is_told_however_it_ends(end):
    lengths = []
    requests = opened(on_idle=lambda: lengths.append(len(requests)))
    first, last = sent(requests), sent(requests)
    first.close()
    assert lengths == []

    end(requests, last)

    assert lengths == [0]
