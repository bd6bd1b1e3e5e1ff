import asyncio

import grpc
from google.protobuf.duration_pb2 import Duration

from engine_service.core.types import Failure, StepStats
from engine_service.errors import InvalidRequest
from protos.pagestream.engine.v1 import engine_pb2
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import (
    WAIT_SECONDS,
    Engine,
    admission,
    failure_status,
    finish,
    generate_request,
    read,
    read_until,
    running_engine,
    status_of,
    submission,
)


async def test_stream_opens_at_once_with_the_load():
    async with running_engine(make_info(num_blocks=32)) as engine:
        call = engine.stub.GenerateMany()
        await asyncio.wait_for(call.initial_metadata(), WAIT_SECONDS)
        first = await read(call)
        assert first.load.state == engine_pb2.ENGINE_STATE_SERVING
        assert (first.load.free_block_count, first.load.total_block_count) == (32, 32)
        assert not first.handles
        assert await engine.metric("streams") == 1


async def test_first_message_says_which_start_of_which_engine_it_is():
    async with running_engine() as engine:
        told = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        call, requests = await _open(engine, 1)
        first = await read(engine.stub.GenerateMany())
        assert (first.epoch, first.model_fingerprint) == (told.epoch, told.model_fingerprint)
        engine.core.step({requests[1].request_id: [1]})
        later = await read_until(call, _has_tokens)
        assert (later.epoch, later.model_fingerprint) == (0, "")


async def test_router_that_means_another_start_is_refused_before_its_requests():
    async with running_engine() as engine:
        told = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        call = engine.stub.GenerateMany()
        stale = submission(1)
        stale.epoch = told.epoch + 1
        await call.write(stale)
        status = await status_of(call)
        assert (status.code, status.reason) == (9, "EPOCH_MISMATCH")
        assert status.metadata["engine_epoch"] == str(told.epoch)
        again = engine.stub.GenerateMany()
        current = submission(2, generate_request(7))
        current.epoch = told.epoch
        await again.write(current)
        # The first that the core hears of.
        assert list((await engine.core.next_request()).prompt_token_ids) == [7]


async def test_one_step_is_one_message_with_all_tokens_packed():
    async with running_engine() as engine:
        call, requests = await _open(engine, 11, 12, 13)
        engine.core.step(
            {
                requests[11].request_id: [1, 2],
                requests[12].request_id: [3],
                requests[13].request_id: [4, 5, 6],
            },
            admissions=[admission(requests[12], num_cached_tokens=2)],
            finishes=[finish(requests[13])],
            stats=StepStats(num_running=2),
        )
        message = await read(call)
        assert list(message.handles) == [11, 12, 13]
        assert list(message.token_counts) == [2, 1, 3]
        assert list(message.token_ids) == [1, 2, 3, 4, 5, 6]
        assert [(a.handle, a.admission.cached_token_count) for a in message.admissions] == [(12, 2)]
        assert [(f.handle, f.finish.reason) for f in message.finishes] == [
            (13, engine_pb2.FINISH_REASON_LENGTH)
        ]
        assert message.load.running_count == 2


async def test_streams_get_their_own_requests_only():
    async with running_engine() as engine:
        one, requests_of_one = await _open(engine, 5)
        other, requests_of_other = await _open(engine, 5)
        engine.core.step({requests_of_one[5].request_id: [1], requests_of_other[5].request_id: [2]})
        assert list((await read_until(one, _has_tokens)).token_ids) == [1]
        assert list((await read_until(other, _has_tokens)).token_ids) == [2]


async def test_refused_submission_fails_alone():
    async with running_engine() as engine:
        call = engine.stub.GenerateMany()
        await call.write(submission(1, generate_request(1, temperature=-1.0)))
        await call.write(submission(2, generate_request(2, logprobs=21)))
        await call.write(submission(3, generate_request(3)))
        request = await engine.core.next_request()
        assert list(request.prompt_token_ids) == [3]
        failures = {}
        while len(failures) < 2:
            for failure in (await read(call)).failures:
                failures[failure.handle] = failure_status(failure)
        assert (failures[1].code, failures[1].reason) == (3, "BAD_SAMPLING_PARAMS")
        assert (failures[2].code, failures[2].reason) == (3, "BAD_SAMPLING_PARAMS")
        assert "temperature is -1," in failures[1].message
        engine.core.step({request.request_id: [9]})
        assert list((await read_until(call, _has_tokens)).handles) == [3]


async def test_failure_from_the_core_names_its_handle():
    async with running_engine() as engine:
        call, requests = await _open(engine, 4)
        error = InvalidRequest("no")
        engine.core.step(failures=[Failure(request_id=requests[4].request_id, error=error)])
        message = await read_until(call, lambda message: message.failures)
        assert message.failures[0].handle == 4
        assert failure_status(message.failures[0]).reason == "BAD_REQUEST"


async def test_second_request_of_a_handle_is_refused_and_the_first_goes_on():
    async with running_engine() as engine:
        call = engine.stub.GenerateMany()
        first = generate_request(1)
        first.request_id = "first"
        second = generate_request(2)
        second.request_id = "second"
        await call.write(submission(8, first))
        await call.write(submission(8, second))
        request = await engine.core.next_request()
        message = await read_until(call, lambda message: message.failures)
        status = failure_status(message.failures[0])
        assert (message.failures[0].handle, status.reason) == (8, "BAD_REQUEST")
        assert status.metadata == {"field": "handle", "handle": "8", "request_id": "second"}
        engine.core.step({request.request_id: [5]}, finishes=[finish(request)])
        message = await read_until(call, _has_tokens)
        assert (list(message.handles), list(message.token_ids)) == ([8], [5])
        assert message.finishes[0].handle == 8


async def test_handle_is_free_again_after_its_request_ended():
    async with running_engine() as engine:
        call, requests = await _open(engine, 8)
        engine.core.step(finishes=[finish(requests[8])])
        await read_until(call, lambda message: message.finishes)
        await call.write(submission(8, generate_request(2)))
        assert list((await engine.core.next_request()).prompt_token_ids) == [2]


async def test_cancelled_handle_is_cancelled_in_the_core_and_silent():
    async with running_engine() as engine:
        call, requests = await _open(engine, 1, 2)
        # 99 was never there: a cancellation may cross a finish.
        await call.write(engine_pb2.GenerateManyRequest(cancelled_handles=[99, 1]))
        assert await engine.core.next_cancelled_id() == requests[1].request_id
        engine.core.step({requests[1].request_id: [1], requests[2].request_id: [2]})
        assert list((await read_until(call, _has_tokens)).handles) == [2]


async def test_breaking_the_stream_cancels_its_requests_in_the_core():
    async with running_engine() as engine:
        call, requests = await _open(engine, 1, 2, 3)
        call.cancel()
        cancelled = {await engine.core.next_cancelled_id() for _ in requests}
        assert cancelled == {request.request_id for request in requests.values()}
        assert not engine.server._load_meter._subscribers


async def test_stream_closed_by_the_router_ends_after_its_last_request():
    async with running_engine() as engine:
        call, requests = await _open(engine, 1)
        await call.done_writing()
        engine.core.step({requests[1].request_id: [1]}, finishes=[finish(requests[1])])
        await read_until(call, lambda message: message.finishes)
        while await read(call) is not grpc.aio.EOF:
            pass
        assert await call.code() == grpc.StatusCode.OK


async def test_request_past_its_timeout_fails_and_is_cancelled_in_the_core():
    async with running_engine() as engine:
        call = engine.stub.GenerateMany()
        timeout = Duration(nanos=50_000_000)
        await call.write(submission(6, generate_request(1), timeout=timeout))
        request = await engine.core.next_request()
        message = await read_until(call, lambda message: message.failures)
        status = failure_status(message.failures[0])
        assert (status.code, status.reason) == (4, "DEADLINE_EXCEEDED")
        assert status.metadata["timeout_seconds"] == "0.05"
        assert await engine.core.next_cancelled_id() == request.request_id


async def test_request_whose_time_is_up_never_reaches_the_core():
    async with running_engine() as engine:
        call = engine.stub.GenerateMany()
        await call.write(submission(6, generate_request(1), timeout=Duration(seconds=0)))
        message = await read_until(call, lambda message: message.failures)
        assert failure_status(message.failures[0]).reason == "DEADLINE_EXCEEDED"
        await call.write(submission(7, generate_request(2)))
        assert list((await engine.core.next_request()).prompt_token_ids) == [2]


async def test_stream_that_is_not_read_is_cut_off_and_others_are_not():
    info = make_info(max_model_len=10**8, num_blocks=10**8)
    async with running_engine(info, max_stream_buffered_tokens=1000) as engine:
        slow, slow_requests = await _open(engine, 1, 2)
        quick, quick_requests = await _open(engine, 1)
        for _ in range(40):
            engine.core.step(
                {
                    **{request.request_id: [1] * 25_000 for request in slow_requests.values()},
                    quick_requests[1].request_id: [2],
                }
            )
        received = []
        while len(received) < 40:
            received += (await read(quick)).token_ids
        assert received == [2] * 40
        cancelled = {await engine.core.next_cancelled_id() for _ in slow_requests}
        assert cancelled == {request.request_id for request in slow_requests.values()}
        status = await status_of(slow)
        assert (status.code, status.reason) == (8, "SLOW_READER")
        assert status.retry_after is None


async def test_stream_that_was_cut_off_gets_nothing_more_into_the_core():
    info = make_info(max_model_len=10**8, num_blocks=10**8)
    async with (
        running_engine(info, max_stream_buffered_tokens=300_000) as engine,
        _narrow_channel(engine) as channel,
    ):
        slow, slow_requests = await _open(Engine(engine.server, engine.core, channel), 1)
        step = {slow_requests[1].request_id: [1] * 200_000}
        engine.core.step(step, stats=StepStats(num_generated_tokens=200_000))
        # From here on the server hangs in its write.
        while await engine.metric("generated_tokens_total") == 0:
            pass
        engine.core.step(step)
        engine.core.step(step)
        await engine.core.next_cancelled_id()
        await slow.write(submission(2, generate_request(5)))
        await slow.write(
            engine_pb2.GenerateManyRequest(
                submissions=[engine_pb2.Submission(handle=handle) for handle in range(100)]
            )
        )
        # What another client sends later arrives first.
        _, requests = await _open(engine, 1)
        assert len(requests[1].prompt_token_ids) == 3
        assert await engine.metric('requests_total{outcome="empty_prompt"}') == 0
        assert (await status_of(slow)).reason == "SLOW_READER"


async def test_router_that_leaves_in_the_middle_of_a_message_is_no_error_of_ours(caplog):
    info = make_info(max_model_len=10**8, num_blocks=10**8)
    async with running_engine(info) as engine:
        async with _narrow_channel(engine) as channel:
            _, requests = await _open(Engine(engine.server, engine.core, channel), 1)
            step = {requests[1].request_id: [1] * 200_000}
            engine.core.step(step, stats=StepStats(num_generated_tokens=200_000))
            while await engine.metric("generated_tokens_total") == 0:
                pass
        assert await engine.core.next_cancelled_id() == requests[1].request_id
        while await engine.metric("streams"):
            pass
        await _open(engine, 1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_death_of_the_core_ends_the_stream_after_what_it_had_to_say():
    async with running_engine() as engine:
        call, requests = await _open(engine, 1, 2)
        engine.core.step({requests[1].request_id: [1]})
        engine.core.die()
        assert list((await read_until(call, _has_tokens)).token_ids) == [1]
        status = await status_of(call)
        assert (status.code, status.reason) == (14, "ENGINE_FAILED")
        assert await engine.metric('requests_total{outcome="engine_failed"}') == 2


async def test_drain_is_told_at_once_and_ends_the_stream_last():
    async with running_engine() as engine:
        call, requests = await _open(engine, 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.server.drain())
            message = await read(call)
            assert message.load.state == engine_pb2.ENGINE_STATE_DRAINING
            await call.write(submission(2, generate_request(2)))
            message = await read_until(call, lambda message: message.failures)
            status = failure_status(message.failures[0])
            assert (message.failures[0].handle, status.reason) == (2, "DRAINING")
            engine.core.step({requests[1].request_id: [7]}, finishes=[finish(requests[1])])
            assert list((await read_until(call, _has_tokens)).token_ids) == [7]
        assert (await status_of(call)).reason == "DRAINING"


async def test_load_is_told_to_a_router_without_requests():
    async with running_engine() as engine:
        idle = engine.stub.GenerateMany()
        await read(idle)
        stats = StepStats(num_running=3, num_waiting=4, num_waiting_prefill_tokens=50)
        engine.core.step(stats=stats)
        load = (await read(idle)).load
        assert (load.running_count, load.waiting_count) == (3, 4)
        assert load.waiting_prefill_token_count == 50


async def _open(engine, *handles):
    """Opens a stream with one request per handle and reads the first message."""
    call = engine.stub.GenerateMany()
    await read(call)
    requests = {}
    for handle in handles:
        await call.write(submission(handle))
        requests[handle] = await engine.core.next_request()
    return call, requests


def _narrow_channel(engine):
    """Returns a channel that takes 64 KiB and no more while nobody reads."""
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{engine.server.port}", options=[("grpc.http2.bdp_probe", 0)]
    )


def _has_tokens(message):
    return len(message.token_ids) > 0
