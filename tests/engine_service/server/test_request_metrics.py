"""What the metrics say of the lengths and the parts of the time of each request."""

import grpc

from engine_service.core.types import FinishReason
from tests.engine_service.server.harness import (
    admission,
    finish,
    generate_request,
    read,
    running_engine,
)

PARTS = ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds")


async def test_request_is_observed_by_its_lengths_and_the_parts_of_its_time():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(4, 5, 6, max_tokens=8))
        request = await engine.core.next_request()
        engine.core.step(admissions=[admission(request, queue_seconds=0.25)])
        await read(call)
        for name in ("prompt_length_tokens", "max_tokens"):
            assert await engine.metric(f"{name}_count") == 1
        engine.core.step({request.request_id: [10]})
        await read(call)
        engine.core.step({request.request_id: [11]}, finishes=[finish(request, FinishReason.STOP)])
        while await read(call) is not grpc.aio.EOF:
            pass

        assert await engine.metric("prompt_length_tokens_sum") == 3
        assert await engine.metric("max_tokens_sum") == 8
        assert await engine.metric("output_length_tokens_sum") == 2
        assert [await engine.metric(f"{part}_count") for part in PARTS] == [1, 1, 1]
        # It began to run after 0.25 s by its admission, so that the test itself need not wait.
        first = await engine.metric("time_to_first_token_seconds_sum")
        assert await engine.metric("queue_time_seconds_sum") == 0.25
        prefill = await engine.metric("prefill_time_seconds_sum")
        decode = await engine.metric("decode_time_seconds_sum")
        between = await engine.metric("time_between_tokens_seconds_sum")
        assert abs(first - 0.25 - prefill) < 1e-6
        assert abs(decode - between) < 1e-6
        assert decode > 0


async def test_request_without_tokens_has_neither_output_nor_decode_time():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(4, 5))
        request = await engine.core.next_request()
        engine.core.step(admissions=[admission(request)])
        await read(call)
        call.cancel()
        assert await engine.core.next_cancelled_id() == request.request_id

        # Nobody has set max_tokens, and no token came.
        for name in ("max_tokens", "output_length_tokens", "decode_time_seconds"):
            assert await engine.metric(f"{name}_count") == 0
        assert await engine.metric("prompt_length_tokens_count") == 1
