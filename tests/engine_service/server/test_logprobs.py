"""Logprobs on their way from the core to clients, of any number and at any pace."""

import asyncio
from array import array

import grpc
import numpy as np
import pytest

from engine_service.core.logprobs import RequestLogprobs, StepLogprobs
from engine_service.core.types import int32_array
from engine_service.errors import EngineFailed
from engine_service.server import convert
from engine_service.server.batch_parts import batch_parts
from engine_service.server.load_meter import Load
from engine_service.server.output_stream import OutputBatch, OutputStream, PromptLogprobs
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.channel import ENGINE_RESPONSE_BYTES
from protos.wire.message_parser import MessageParser
from tests.engine_service.core.fake_executor import make_info, tokens
from tests.engine_service.server.harness import (
    admission,
    finish,
    generate_request,
    read,
    read_until,
    running_engine,
    status_of,
    submission,
)
from tests.fakes.logprobs import pack, unpack

parse = MessageParser(engine_pb2.GenerateManyResponse)
parse_single = MessageParser(engine_pb2.GenerateResponse)


def rows(count, width, start=0):
    """Returns rows of which each is different."""
    return [
        (
            -float(n),
            [n * width + rank for rank in range(width)],
            [-rank / 2 for rank in range(width)],
        )
        for n in range(start, start + count)
    ]


def many_rows(count, width):
    """The same, fast."""
    candidates = np.arange(count * width)
    return StepLogprobs(
        logprobs=array("f", (-np.arange(count) / 4).astype("f4").tobytes()),
        top_token_ids=array("i", candidates.astype("i4").tobytes()),
        top_logprobs=array("f", (-candidates / 8).astype("f4").tobytes()),
    )


def report(*entries):
    """Packs entries of request, first position and rows."""
    packed = RequestLogprobs()
    for request, position, some in entries:
        packed.add(request.request_id, position, pack(some))
    return packed


def received(message):
    """Returns the rows of a message of the contract."""
    return unpack(
        StepLogprobs(
            logprobs=array("f", message.logprobs),
            top_token_ids=array("i", message.top_token_ids),
            top_logprobs=array("f", message.top_logprobs),
        )
    )


async def test_call_gets_logprobs_of_its_prompt_and_of_each_token():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(4, 5, 6, logprobs=2, prompt_logprobs=1))
        request = await engine.core.next_request()
        params = request.sampling_params
        assert (params.logprobs, params.prompt_logprobs) == (2, 1)
        engine.core.step(
            admissions=[admission(request)], prompt_logprobs=report((request, 1, rows(1, 1)))
        )
        first = await read(call)
        assert first.HasField("admission")
        assert first.prompt_logprobs.first_position == 1
        assert received(first.prompt_logprobs.logprobs) == rows(1, 1)
        assert not first.HasField("logprobs")

        engine.core.step(
            {request.request_id: [10]},
            prompt_logprobs=report((request, 2, rows(1, 1, 1))),
            logprobs=report((request, 3, rows(1, 2))),
            finishes=[finish(request)],
        )
        last = await read(call)
        assert last.prompt_logprobs.first_position == 2
        assert received(last.prompt_logprobs.logprobs) == rows(1, 1, 1)
        assert list(last.token_ids) == [10]
        assert received(last.logprobs) == rows(1, 2)
        assert last.HasField("finish")


async def test_prompt_is_scored_without_a_token():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(4, 5, max_tokens=0, prompt_logprobs=0))
        request = await engine.core.next_request()
        engine.core.step(
            admissions=[admission(request)],
            prompt_logprobs=report((request, 1, rows(1, 0))),
            finishes=[finish(request)],
        )
        message = await read(call)
        assert message.HasField("admission")
        assert received(message.prompt_logprobs.logprobs) == rows(1, 0)
        assert message.finish.reason == engine_pb2.FINISH_REASON_LENGTH
        assert not message.token_ids
        assert await read(call) is grpc.aio.EOF


async def test_stream_carries_logprobs_of_those_who_asked_only():
    async with running_engine() as engine:
        call = engine.stub.GenerateMany()
        requests = {}
        for handle, fields in ((5, {"logprobs": 1}), (6, {}), (7, {"prompt_logprobs": 0})):
            await call.write(submission(handle, generate_request(1, 2, 3, **fields)))
            requests[handle] = await engine.core.next_request()
        engine.core.step(
            {requests[5].request_id: [1, 2], requests[6].request_id: [3]},
            logprobs=report((requests[5], 3, rows(2, 1))),
            prompt_logprobs=report((requests[7], 1, rows(2, 0))),
        )
        message = await read_until(call, lambda message: message.handles)
        assert [entry.handle for entry in message.logprobs] == [5]
        assert received(message.logprobs[0].logprobs) == rows(2, 1)
        assert [entry.handle for entry in message.prompt_logprobs] == [7]
        assert message.prompt_logprobs[0].prompt_logprobs.first_position == 1
        assert received(message.prompt_logprobs[0].prompt_logprobs.logprobs) == rows(2, 0)

        engine.core.step({requests[6].request_id: [4]})
        plain = await read_until(call, lambda message: message.handles)
        assert not plain.logprobs
        assert not plain.prompt_logprobs


async def test_logprobs_of_a_cancelled_request_are_dropped():
    async with running_engine() as engine:
        call = engine.stub.GenerateMany()
        await call.write(submission(1, generate_request(1, logprobs=0, prompt_logprobs=0)))
        await call.write(submission(2, generate_request(2, logprobs=0)))
        requests = [await engine.core.next_request() for _ in range(2)]
        await call.write(engine_pb2.GenerateManyRequest(cancelled_handles=[1]))
        await engine.core.next_cancelled_id()
        engine.core.step(
            {request.request_id: [9] for request in requests},
            logprobs=report(*((request, 1, rows(1, 0)) for request in requests)),
            prompt_logprobs=report((requests[0], 1, rows(1, 0))),
        )
        message = await read_until(call, lambda message: message.handles)
        assert list(message.handles) == [2]
        assert [entry.handle for entry in message.logprobs] == [2]
        assert not message.prompt_logprobs


async def test_logprobs_merge_while_the_reader_is_busy():
    stream = OutputStream(100)
    for start in (0, 2):
        stream.add_prompt_logprobs(1, 1 + start, pack(rows(2, 3, start)))
        stream.add_tokens(2, tokens(7, 8))
        stream.add_logprobs(2, pack(rows(2, 1, start)))
    batch = await stream.wait()
    assert batch.prompt_logprobs[1].first_position == 1
    assert unpack(batch.prompt_logprobs[1].logprobs) == rows(4, 3)
    assert unpack(batch.logprobs[2]) == rows(4, 1)
    assert stream.num_buffered == 0


async def test_discarding_a_request_drops_its_logprobs():
    stream = OutputStream(100)
    for handle in (1, 2):
        stream.add_tokens(handle, tokens(7))
        stream.add_logprobs(handle, pack(rows(1, 2)))
        stream.add_prompt_logprobs(handle, 1, pack(rows(3, 0)))
    before = stream.num_buffered
    stream.discard(1)
    assert stream.num_buffered == before / 2
    batch = await stream.wait()
    assert (list(batch.logprobs), list(batch.prompt_logprobs)) == ([2], [2])


def test_logprobs_fill_the_stream_from_the_next_step_on():
    stream = OutputStream(10)
    stream.begin_step()
    stream.add_prompt_logprobs(1, 1, pack(rows(5, 2)))
    stream.add_prompt_logprobs(2, 1, pack(rows(5, 2)))
    assert stream.num_buffered == 30
    assert not stream.is_overfull
    stream.begin_step()
    assert stream.is_overfull


def test_tokens_count_beside_new_logprobs():
    stream = OutputStream(3)
    stream.add_logprobs(1, pack(rows(1, 9)))
    stream.add_tokens(1, tokens(1, 2, 3))
    assert not stream.is_overfull
    stream.add_tokens(1, tokens(4))
    assert stream.is_overfull


async def test_reader_that_waits_is_not_slow_whatever_comes_at_once():
    stream = OutputStream(10)
    waiting = asyncio.ensure_future(stream.wait())
    await asyncio.sleep(0)
    for start in (0, 20):
        stream.begin_step()
        stream.add_prompt_logprobs(1, 1 + start, pack(rows(20, 1, start)))
        assert not stream.is_overfull
    batch = await waiting
    assert len(batch.prompt_logprobs[1].logprobs) == 40
    for start in (40, 60):
        stream.begin_step()
        stream.add_prompt_logprobs(1, 1 + start, pack(rows(20, 1, start)))
    assert stream.is_overfull
    stream.fail(EngineFailed("gone"), keep_outputs=False)
    with pytest.raises(EngineFailed):
        await stream.wait()


async def test_client_that_does_not_read_its_logprobs_is_cut_off():
    info = make_info(max_model_len=10**8, num_blocks=10**8)
    async with running_engine(info, max_buffered_tokens=1000) as engine:
        slow = engine.stub.Generate(generate_request(prompt_logprobs=20))
        request = await engine.core.next_request()
        engine.core.step(admissions=[admission(request)])
        start = 1
        while not await engine.metric("slow_readers_total"):
            packed = RequestLogprobs()
            packed.add(request.request_id, start, many_rows(5000, 20))
            engine.core.step(prompt_logprobs=packed)
            start += 5000
            assert start < 1_000_000, "160 MB are kept for one reader"
        assert await engine.core.next_cancelled_id() == request.request_id
        status = await status_of(slow)
        assert (status.code, status.reason) == (8, "SLOW_READER")
        assert await engine.metric("slow_readers_total") == 1


async def test_client_that_reads_gets_the_logprobs_of_a_long_prompt():
    """Each part alone is larger than the buffer."""
    info = make_info(max_model_len=10**8, num_blocks=10**8)
    async with running_engine(info, max_buffered_tokens=1000) as engine:
        call = engine.stub.Generate(generate_request(prompt_logprobs=20))
        request = await engine.core.next_request()
        engine.core.step(admissions=[admission(request)])
        await read(call)
        for start in range(1, 40_000, 8192):
            packed = RequestLogprobs()
            packed.add(request.request_id, start, many_rows(8192, 20))
            engine.core.step(prompt_logprobs=packed)
            part = (await read(call)).prompt_logprobs
            assert part.first_position == start
            assert len(part.logprobs.logprobs) == 8192
            assert list(part.logprobs.top_token_ids[-2:]) == [8192 * 20 - 2, 8192 * 20 - 1]


def batch_of(num_requests, num_tokens, width, num_prompts, num_prompt_tokens):
    return OutputBatch(
        handles=list(range(num_requests)),
        token_counts=[num_tokens] * num_requests,
        token_ids=int32_array(range(num_requests * num_tokens)),
        # Every second one asks.
        logprobs={handle: many_rows(num_tokens, width) for handle in range(0, num_requests, 2)},
        prompt_logprobs={
            handle: PromptLogprobs(
                first_position=1 + handle, logprobs=many_rows(num_prompt_tokens, width)
            )
            for handle in range(num_prompts)
        },
    )


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 3, 4, 1, 5),
        (256, 1, 20, 0, 0),
        (1, 140_000, 1, 0, 0),
        (1, 1000, 100, 1, 20_000),
        (5000, 2, 20, 0, 0),
        (3, 50_000, 1, 1, 30_000),
        (4, 1, 0, 1500, 3),
        (1, 1, 100, 3, 2621),
        (0, 0, 20, 1, 14_000),
        (2, 1, 0, 1, 200_000),
    ],
)
def test_parts_hold_all_logprobs_and_an_engine_s_peer_takes_each(sizes):
    batch = batch_of(*sizes)
    found: dict[int, StepLogprobs] = {}
    found_prompts: dict[int, StepLogprobs] = {}
    num_tokens = 0
    for response in convert.to_generate_many_responses(batch, Load()):
        content = response.SerializeToString()
        assert len(content) <= ENGINE_RESPONSE_BYTES
        assert parse(content) == response
        counts = dict(zip(response.handles, response.token_counts, strict=True))
        num_tokens += sum(counts.values())
        for entry in response.logprobs:
            assert len(entry.logprobs.logprobs) == counts[entry.handle]
            _append(found, entry.handle, entry.logprobs)
        for prompt in response.prompt_logprobs:
            done = len(found_prompts.get(prompt.handle, ()))
            part = prompt.prompt_logprobs
            assert part.first_position == 1 + prompt.handle + done
            _append(found_prompts, prompt.handle, part.logprobs)
    assert num_tokens == len(batch.token_ids)
    assert found == batch.logprobs
    assert found_prompts == {h: prompt.logprobs for h, prompt in batch.prompt_logprobs.items()}


def _append(found, handle, message):
    part = StepLogprobs(
        logprobs=array("f", message.logprobs),
        top_token_ids=array("i", message.top_token_ids),
        top_logprobs=array("f", message.top_logprobs),
    )
    if handle in found:
        found[handle].extend(part)
    else:
        found[handle] = part


def test_parts_of_one_call_hold_everything_too():
    batch = batch_of(1, 3000, 100, 1, 5000)
    responses = list(convert.to_generate_responses(batch))
    assert len(responses) > 3
    for response in responses:
        content = response.SerializeToString()
        assert len(content) <= ENGINE_RESPONSE_BYTES
        assert parse_single(content) == response
        assert len(response.logprobs.logprobs) == len(response.token_ids)
    assert sum(len(response.token_ids) for response in responses) == 3000
    prompt = [value for r in responses for value in r.prompt_logprobs.logprobs.top_token_ids]
    assert prompt == list(range(500_000))


def test_batch_that_fits_is_one_part():
    batch = batch_of(256, 1, 20, 4, 100)
    assert list(batch_parts(batch)) == [batch]
