"""Clients of all tempers against the real core: each gets its own tokens, and nothing is left."""

import asyncio
import multiprocessing
import random
import threading

import grpc

from engine_service.config import SchedulerOptions
from engine_service.core.engine_core import EngineCore, serve
from engine_service.server.tokenizer_files import TokenizerFiles
from protos.pagestream.engine.v1 import engine_pb2
from tests.engine_service.core.fake_executor import (
    FakeExecutor,
    make_info,
    oracle,
    oracle_logprobs,
)
from tests.engine_service.server.harness import (
    WAIT_SECONDS,
    generate_request,
    read,
    starting_engine,
    submission,
)

NUM_SINGLE = 40
NUM_OF_STREAM = 40
NUM_SCORERS = 15
VOCABULARY = 100


async def test_random_clients_get_their_tokens_and_leave_nothing_behind():
    ours, theirs = multiprocessing.Pipe()
    info = make_info(max_model_len=64, num_blocks=24, max_num_seqs=6)
    options = SchedulerOptions(max_num_seqs=6, max_num_batched_tokens=16)
    core = EngineCore(info, options, FakeExecutor(info))
    theirs.send(info)
    thread = threading.Thread(target=serve, args=(core, theirs))
    thread.start()
    async with starting_engine() as engine:
        await engine.server.serve(ours, TokenizerFiles())
        async with asyncio.TaskGroup() as tasks:
            for seed in range(NUM_SINGLE):
                tasks.create_task(_single(engine, random.Random(seed)))
            for seed in range(2):
                tasks.create_task(_stream(engine, random.Random(100 + seed)))
            for seed in range(NUM_SCORERS):
                tasks.create_task(_scorer(engine, random.Random(200 + seed)))
        async with asyncio.timeout(WAIT_SECONDS):
            while await engine.metric("requests_running") + await engine.metric("requests_waiting"):
                pass
        assert await engine.metric("kv_cache_usage_ratio") == 0
        ends = [
            await engine.metric(f'requests_total{{outcome="{outcome}"}}')
            for outcome in ("length", "cancelled")
        ]
        assert sum(ends) == NUM_SINGLE + 2 * NUM_OF_STREAM + NUM_SCORERS
        assert all(ends)
        assert await engine.metric("streams") == 0
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert not core.has_work


async def _single(engine, rng):
    prompt, max_tokens, expected = _draw(rng)
    call = engine.stub.Generate(_request(prompt, max_tokens))
    stop_after = rng.choice([None, None, 1, 3])
    tokens = []
    if stop_after is None:
        while (message := await read(call)) is not grpc.aio.EOF:
            tokens += message.token_ids
        assert tokens == expected
    else:
        while len(tokens) < min(stop_after, max_tokens):
            tokens += (await read(call)).token_ids
        call.cancel()
        assert tokens == expected[: len(tokens)]


async def _scorer(engine, rng):
    """Asks for logprobs of prompt and tokens, sometimes of no token."""
    prompt, max_tokens, expected = _draw(rng)
    max_tokens = rng.choice([0, max_tokens])
    width = rng.choice([0, 1, 5])
    request = _request(prompt, max_tokens)
    request.sampling_params.prompt_logprobs = request.sampling_params.logprobs = width
    call = engine.stub.Generate(request)
    tokens, rows = [], []
    while (message := await read(call)) is not grpc.aio.EOF:
        if message.HasField("prompt_logprobs"):
            assert not tokens
            assert message.prompt_logprobs.first_position == 1 + len(rows)
            rows += _rows(message.prompt_logprobs.logprobs, width)
        tokens += message.token_ids
        rows += _rows(message.logprobs, width)
        assert len(message.logprobs.logprobs) == len(message.token_ids)
    assert tokens == expected[:max_tokens]
    assert rows == oracle_logprobs(prompt + tokens, width, VOCABULARY)


def _rows(logprobs, width):
    return [
        (
            own,
            list(logprobs.top_token_ids[row * width : (row + 1) * width]),
            list(logprobs.top_logprobs[row * width : (row + 1) * width]),
        )
        for row, own in enumerate(logprobs.logprobs)
    ]


async def _stream(engine, rng):
    """Submits all, cancels some, and reads to the end."""
    call = engine.stub.GenerateMany()
    expected, tokens, finished = {}, {}, set()
    for handle in range(NUM_OF_STREAM):
        prompt, max_tokens, expected[handle] = _draw(rng)
        tokens[handle] = []
        await call.write(submission(handle, _request(prompt, max_tokens)))
    cancelled = rng.sample(range(NUM_OF_STREAM), NUM_OF_STREAM // 4)
    await call.write(engine_pb2.GenerateManyRequest(cancelled_handles=cancelled))
    await call.done_writing()
    while (message := await read(call)) is not grpc.aio.EOF:
        start = 0
        for handle, count in zip(message.handles, message.token_counts, strict=True):
            assert handle not in finished
            tokens[handle] += message.token_ids[start : start + count]
            start += count
        finished |= {finish.handle for finish in message.finishes}
        assert not message.failures
    assert finished | set(cancelled) == set(expected)
    for handle in finished:
        assert tokens[handle] == expected[handle]
    for handle in set(expected) - finished:
        assert tokens[handle] == expected[handle][: len(tokens[handle])]


def _draw(rng):
    prompt = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 20))]
    max_tokens = rng.randint(1, 40)
    return prompt, max_tokens, oracle(prompt, max_tokens, 0, 0.0, VOCABULARY)


def _request(prompt, max_tokens):
    return generate_request(*prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
