"""`python -m engine_service` with a real, tiny model: from the command line to the tokens."""

import random
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine_service.server.health import SERVICE_NAME
from protos.pagestream.engine.v1 import engine_pb2
from tests.engine_service.process_harness import (
    REAL,
    engine_process,
    kill,
    stopped,
    wait_gone,
)
from tests.engine_service.server.harness import generate_request, read, status_of, submission

MIN_GAP = 1e-3
"""Of the reference's two best logits; below it, rounding may decide."""


@pytest.fixture(scope="module")
def arguments(tiny_model):
    return [
        *("--model", str(tiny_model.folder), "--device", "cpu", "--cpu-threads", "1"),
        *("--block-size", "16", "--num-blocks", "64", "--max-num-batched-tokens", "32"),
    ]


@pytest.fixture(scope="module")
def answers(tiny_model):
    """Prompts and what transformers says greedily, of lengths around a block's end."""
    rng = random.Random(0)
    found = []
    for length in (1, 15, 16, 17, 40):
        tokens, gap = [], 0.0
        while gap < MIN_GAP:
            prompt = [rng.randrange(tiny_model.vocab_size) for _ in range(length)]
            tokens, gap = tiny_model.greedy(prompt, 20)
        found.append((prompt, tokens))
    return found


async def test_greedy_tokens_are_those_of_transformers_and_sigterm_drains(arguments, answers):
    async with engine_process(REAL, *arguments) as engine:
        await engine.wait_line("ready")
        core = engine.core_pid()
        assert _has_torch(core)
        assert not _has_torch(engine.process.pid)
        async with engine.stub() as stub:
            for prompt, expected in answers[-2:]:
                assert await _generate(stub, prompt) == expected
            assert await _generate_many(stub, answers) == [tokens for _, tokens in answers]

            last = stub.Generate(_request(answers[0][0], 400))
            received = len((await read(last)).token_ids)
            engine.process.send_signal(signal.SIGTERM)
            while (message := await read(last)) is not grpc.aio.EOF:
                received += len(message.token_ids)
            assert received == 400
        assert await engine.wait_end() == 0
        await wait_gone(core)


async def test_killed_core_fails_open_requests_and_the_process(arguments):
    async with engine_process(REAL, *arguments) as engine:
        await engine.wait_line("ready")
        async with engine.stub() as stub:
            call = stub.Generate(_request([1], 500))
            await read(call)
            kill(engine.core_pid())
            assert (await status_of(call)).reason == "ENGINE_FAILED"
        assert await engine.wait_end() == 1


async def test_stopped_core_fails_open_requests_then_the_process_and_leaves_nothing(arguments):
    watched = ["--core-silence-seconds", "2", "--frozen-core-exit-seconds", "1"]
    async with engine_process(REAL, *arguments, *watched) as engine:
        await engine.wait_line("ready")
        children = engine.children()
        async with engine.stub() as stub:
            call = stub.Generate(_request([1], 500))
            many = stub.GenerateMany()
            await many.write(submission(1, _request([2], 500)))
            for open_call in (call, many):
                await read(open_call)
            with stopped(engine.core_pid()):
                for open_call in (call, many):
                    status = await status_of(open_call)
                    assert (status.code, status.reason) == (14, "ENGINE_FAILED")
                async with engine.channel() as channel:
                    health = health_pb2_grpc.HealthStub(channel)
                    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
                    while (await read(watch)).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                        pass
                    assert await engine.http_status("/livez") == 503
                    assert await engine.http_status("/readyz") == 503
                    refusal = await status_of(stub.Generate(_request([1], 5)))
                    assert (refusal.code, refusal.reason) == (14, "ENGINE_FAILED")
                assert await engine.wait_end() == 1
                for pid in children:
                    await wait_gone(pid)
    assert sum("core lost silence_seconds=" in line for line in engine.lines) == 1


async def _generate(stub, prompt):
    return [
        token
        async for message in stub.Generate(_request(prompt, 20))
        for token in message.token_ids
    ]


async def _generate_many(stub, answers):
    """Sends all prompts at once over one stream; returns their tokens in order."""
    call = stub.GenerateMany()
    for handle, (prompt, _) in enumerate(answers):
        await call.write(submission(handle, _request(prompt, 20)))
    await call.done_writing()
    tokens = [[] for _ in answers]
    reasons = {}
    while (message := await read(call)) is not grpc.aio.EOF:
        assert not message.failures
        start = 0
        for handle, count in zip(message.handles, message.token_counts, strict=True):
            tokens[handle] += message.token_ids[start : start + count]
            start += count
        reasons.update({end.handle: end.finish.reason for end in message.finishes})
    assert set(reasons.values()) == {engine_pb2.FINISH_REASON_LENGTH}
    assert len(reasons) == len(answers)
    return tokens


def _has_torch(pid):
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def _request(prompt, max_tokens):
    return generate_request(*prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
