"""Generate and Abort of the vLLM service: tokens, ends, logprobs, samples, stop texts."""

from pathlib import Path

import grpc
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_service.core.logprobs import RequestLogprobs
from engine_service.core.types import Failure, FinishReason
from engine_service.errors import InvalidRequest
from engine_service.server.tokenizer_files import TokenizerFiles
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import admission, finish, read, status_of
from tests.engine_service.server.vllm.client import (
    request,
    running_vllm_engine,
    starting_vllm_engine,
)
from tests.fakes.logprobs import pack

CHECKPOINT = Path(__file__).parents[4] / "demo_model" / "checkpoint"


def report(request, position, *rows):
    """Returns a step's logprobs of one request: of each token, its own and the likeliest."""
    logprobs = RequestLogprobs()
    logprobs.add(request.request_id, position, pack(rows))
    return logprobs


async def test_tokens_stream_as_they_come_and_the_end_repeats_them():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(4, 5, max_tokens=3, stop_token_ids=[11]))
        asked = await engine.core.next_request()
        engine.core.step(
            {asked.request_id: [10]}, admissions=[admission(asked, num_cached_tokens=1)]
        )
        first = (await read(call)).chunk
        engine.core.step(
            {asked.request_id: [12, 11]},
            finishes=[finish(asked, FinishReason.STOP, stop_token_id=11)],
        )
        second = (await read(call)).chunk
        end = (await read(call)).complete

        assert (list(first.token_ids), first.completion_tokens) == ([10], 1)
        assert (first.prompt_tokens, first.cached_tokens) == (2, 1)
        assert (list(second.token_ids), second.completion_tokens) == ([12, 11], 2)
        assert (list(end.output_ids), end.completion_tokens) == ([10, 12, 11], 3)
        assert (end.prompt_tokens, end.cached_tokens) == (2, 1)
        assert (end.finish_reason, end.matched_token_id) == ("stop", 11)
        assert await read(call) is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


async def test_call_that_is_not_streamed_gets_one_message():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(stream=False, max_tokens=2))
        asked = await engine.core.next_request()
        engine.core.step({asked.request_id: [10]}, admissions=[admission(asked)])
        engine.core.step({asked.request_id: [11]}, finishes=[finish(asked)])

        end = (await read(call)).complete

        assert (list(end.output_ids), end.finish_reason) == ([10, 11], "length")
        assert end.WhichOneof("matched_stop") is None
        assert await read(call) is grpc.aio.EOF


async def test_model_s_own_end_matches_nothing():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(stream=False))
        asked = await engine.core.next_request()
        engine.core.step(
            {asked.request_id: [0]}, finishes=[finish(asked, FinishReason.STOP, stop_token_id=0)]
        )
        end = (await read(call)).complete
        assert (end.finish_reason, end.WhichOneof("matched_stop")) == ("stop", None)


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_logprobs_of_tokens_and_prompt(is_streamed):
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(4, 5, stream=is_streamed, logprobs=2, prompt_logprobs=1))
        asked = await engine.core.next_request()
        assert (asked.sampling_params.logprobs, asked.sampling_params.prompt_logprobs) == (2, 1)
        engine.core.step(
            admissions=[admission(asked)],
            prompt_logprobs=report(asked, 1, (-7.0, [7], [-0.5])),
        )
        engine.core.step(
            {asked.request_id: [10]}, logprobs=report(asked, 2, (0.0, [0, 1], [0.0, -0.5]))
        )
        engine.core.step(
            {asked.request_id: [11]},
            logprobs=report(asked, 3, (-1.0, [2, 3], [0.0, -0.5])),
            finishes=[finish(asked)],
        )
        parts = [await read(call)]
        while not parts[-1].HasField("complete"):
            parts.append(await read(call))
        messages = [part.chunk if part.HasField("chunk") else part.complete for part in parts]

        found = [message.output_logprobs for message in messages]
        assert [token for part in found for token in part.token_ids] == [10, 11]
        assert [value for part in found for value in part.token_logprobs] == [0.0, -1.0]
        top = [top for part in found for top in part.top_logprobs]
        assert [(list(row.token_ids), list(row.values)) for row in top] == [
            ([0, 1], [0.0, -0.5]),
            ([2, 3], [0.0, -0.5]),
        ]
        (prompt,) = [m.input_logprobs for m in messages if m.HasField("input_logprobs")]
        assert messages[0].HasField("input_logprobs")
        assert list(prompt.token_ids) == [4, 5]
        assert [value.HasField("value") for value in prompt.token_logprobs] == [False, True]
        assert prompt.token_logprobs[1].value == -7.0
        assert [list(row.token_ids) for row in prompt.top_logprobs] == [[], [7]]


async def test_samples_differ_in_their_draws_and_end_each_for_itself():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(n=2, seed=9, stream=False))
        asked = [await engine.core.next_request() for _ in range(2)]
        assert [one.sampling_params.sample_index for one in asked] == [None, 1]
        assert [one.sampling_params.seed for one in asked] == [9, 9]
        engine.core.step({asked[1].request_id: [7]}, finishes=[finish(asked[1])])
        engine.core.step({asked[0].request_id: [8]}, finishes=[finish(asked[0])])
        ends = [(await read(call)).complete for _ in asked]
        assert [(end.index, list(end.output_ids)) for end in ends] == [(1, [7]), (0, [8])]
        assert await read(call) is grpc.aio.EOF


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_abort_ends_the_request_in_the_core_and_the_call_with_what_there_is(is_streamed):
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(name="mine", stream=is_streamed))
        other = stub.Generate(request(name="other"))
        asked = await engine.core.next_request()
        others = await engine.core.next_request()
        engine.core.step({asked.request_id: [10], others.request_id: [10]})
        await read(other)
        await stub.Abort(pb.AbortRequest(request_ids=["unknown", "mine"]))

        messages = [await read(call)]
        while not messages[-1].HasField("complete"):
            messages.append(await read(call))
        end = messages[-1].complete
        assert (end.finish_reason, end.prompt_tokens) == ("abort", 3)
        assert await read(call) is grpc.aio.EOF
        cancelled = await engine.core.next_cancelled_id()
        left = others if cancelled == asked.request_id else asked
        engine.core.step({left.request_id: [11]}, finishes=[finish(left)])
        assert list((await read(other)).chunk.token_ids) == [11]


async def test_client_that_leaves_cancels_all_samples_in_the_core():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request(n=2))
        asked = {(await engine.core.next_request()).request_id for _ in range(2)}
        call.cancel()
        assert {await engine.core.next_cancelled_id() for _ in range(2)} == asked


async def test_stop_text_ends_the_request_where_it_is_complete():
    files = TokenizerFiles.read([CHECKPOINT / "tokenizer.json"])
    info = make_info(vocab_size=2048, eos_token_ids=frozenset({0}))
    async with running_vllm_engine(info, files) as (engine, stub):
        call = stub.Generate(request(stop=["lus 3", "zzz"], logprobs=0, stream=False))
        asked = await engine.core.next_request()
        # The tokens of "2 plus 30?"; the text is complete with the third one.
        token_ids = [20, 1878, 325, 18, 33]
        assert asked.sampling_params.max_tokens is None
        logprobs = [(-float(index), [], []) for index in range(5)]
        engine.core.step(
            {asked.request_id: token_ids[:1]}, logprobs=report(asked, 3, *logprobs[:1])
        )
        engine.core.step(
            {asked.request_id: token_ids[1:]}, logprobs=report(asked, 4, *logprobs[1:])
        )
        end = (await read(call)).complete
        assert (end.finish_reason, end.matched_stop_str) == ("stop", "lus 3")
        assert list(end.output_ids) == token_ids[:3]
        assert list(end.output_logprobs.token_ids) == token_ids[:3]
        assert list(end.output_logprobs.token_logprobs) == [0.0, -1.0, -2.0]
        assert await engine.core.next_cancelled_id() == asked.request_id
        assert await read(call) is grpc.aio.EOF


async def test_failure_in_the_core_is_the_status_of_the_call():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request())
        asked = await engine.core.next_request()
        error = InvalidRequest("the core says no")
        engine.core.step(failures=[Failure(request_id=asked.request_id, error=error)])
        status = await status_of(call)
        assert (status.code, status.message) == (3, "the core says no")


async def test_full_queue_and_slow_reader_are_told_by_their_codes():
    async with running_vllm_engine(max_waiting_requests=1, max_buffered_tokens=4) as (
        engine,
        stub,
    ):
        call = stub.Generate(request())
        asked = await engine.core.next_request()
        assert (await status_of(stub.Generate(request()))).reason == "QUEUE_FULL"
        engine.core.step({asked.request_id: [1] * 9}, admissions=[admission(asked)])
        status = await status_of(call)
        assert (status.code, status.reason) == (8, "SLOW_READER")


async def test_engine_that_starts_or_drains_refuses_and_says_so_in_its_health():
    async with starting_vllm_engine() as (_, stub):
        health = await stub.HealthCheck(pb.HealthCheckRequest())
        assert (health.healthy, health.message) == (False, "starting: the model is loading")
        assert (await status_of(stub.Generate(request()))).reason == "STARTING"
    async with running_vllm_engine(drain_grace_seconds=0.01) as (engine, stub):
        assert (await stub.HealthCheck(pb.HealthCheckRequest())).healthy
        await engine.server.drain()
        assert not (await stub.HealthCheck(pb.HealthCheckRequest())).healthy
        assert (await status_of(stub.Generate(request()))).reason == "DRAINING"
