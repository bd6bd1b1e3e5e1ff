"""A router as a process beside engines that misbehave, and after it stood still itself."""

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest

from protos.pagestream.router.v1 import router_pb2 as pb
from protos.wire import channel
from tests.fakes import small_tokenizer
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig, expected_tokens
from tests.system.test_router import TOKENIZER, VOCAB_SIZE, Status, free_address, routing

PROMPT = "the quick brown fox"
PANICS = {
    "at_load": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    "at_each_text": {"type": "Prepend", "prepend": ""},
}


@pytest.fixture
def config(tmp_path):
    folder = small_tokenizer.save(tmp_path / "tokenizer")
    return FakeEngineConfig(
        vocab_size=VOCAB_SIZE, tokenizer=folder, decode_step_seconds=0.005, max_model_len=4096
    )


def asked(model, max_tokens=20):
    params = pb.SamplingParams(temperature=0, max_tokens=max_tokens)
    return pb.GenerateRequest(model=model, text=PROMPT, sampling_params=params)


async def tokens_of(router, model, max_tokens=20):
    call = router.stub.Generate(asked(model, max_tokens), timeout=60)
    return [token for message in [m async for m in call] for token in message.token_ids]


def expected(config, max_tokens=20):
    return expected_tokens(TOKENIZER.encode_text(PROMPT), max_tokens, config=config)


class Hanging(FakeEngine):
    is_asked = False

    async def GetTokenizer(self, request, context):
        self.is_asked = True
        self._notify()
        await asyncio.Event().wait()
        yield


async def test_engine_that_hangs_keeps_no_router_from_being_ready_and_no_text_waiting(config):
    address = free_address()
    async with (
        Hanging(replace(config, model_name="hanging")) as alone,
        Hanging(config) as hanging,
        routing(alone.address, hanging.address, address) as router,
    ):
        for engine in (alone, hanging):
            await engine.wait_until(lambda engine=engine: engine.is_asked)
        async with FakeEngine(config, port=int(address.rpartition(":")[2])):
            # A whole transfer may take a minute.
            async with asyncio.timeout(20):
                await router.watch_health(Status.SERVING)
                assert await tokens_of(router, config.model_name) == expected(config)


@pytest.mark.parametrize("kind", PANICS)
async def test_tokenizer_on_which_the_library_panics_harms_no_other_model(config, kind, tmp_path):
    content = json.loads(small_tokenizer.files()["tokenizer.json"])
    content["normalizer"] = PANICS[kind]
    for token in content["added_tokens"]:
        token["special"] = False
    folder = small_tokenizer.save(tmp_path / "stranger")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    stranger = replace(config, model_name="stranger", tokenizer=folder)
    async with (
        FakeEngine(stranger) as bad,
        FakeEngine(config) as good,
        routing(bad.address, good.address) as router,
    ):
        await router.watch_health(Status.SERVING)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await tokens_of(router, "stranger")
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            assert "Panic" in raised.value.details()
            assert await tokens_of(router, config.model_name) == expected(config)
        router.process.send_signal(signal.SIGTERM)
        assert await router.end() == 0
    assert sum("tokenizer unusable model=stranger" in line for line in router.log) == 1
    assert not any("Traceback" in line for line in router.log)


async def test_streams_outlive_a_router_that_stood_still(config, monkeypatch):
    async with AsyncExitStack() as stack:
        with monkeypatch.context() as patched:
            # The engines give a silent router up after half a second, not after fifteen.
            patched.setattr(channel, "_KEEPALIVE_TIME_MS", 300)
            patched.setattr(channel, "_KEEPALIVE_TIMEOUT_MS", 200)
            engines = [await stack.enter_async_context(FakeEngine(config)) for _ in range(2)]
        addresses = [engine.address for engine in engines]
        router = await stack.enter_async_context(routing(*addresses))
        await router.watch_health(Status.SERVING)
        async with asyncio.timeout(60):
            calls = [aiter(router.stub.Generate(asked("fake", 400))) for _ in range(16)]
            firsts = [await anext(call) for call in calls]
            router.process.send_signal(signal.SIGSTOP)
            for engine in engines:
                await engine.wait_until(lambda engine=engine: not engine._sinks, 30.0)
            router.process.send_signal(signal.SIGCONT)

            for first, call in zip(firsts, calls, strict=True):
                messages = [first, *[message async for message in call]]
                tokens = [token for message in messages for token in message.token_ids]
                assert tokens == expected(config, 400)
