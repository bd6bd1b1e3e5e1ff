"""A connection of a client grows old: new calls take another one, and those that run finish."""

import asyncio

import grpc
import pytest

from tests.fakes import small_tokenizer
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.system.fleets import TIMEOUT, until
from tests.system.test_router import VOCAB_SIZE, greedy, routing

OPTIONS = ("--max-connection-age-seconds", "0.2", "--max-connection-age-grace-seconds", "1.5")


async def left(channel):
    """Waits until the client has been told to leave its connection."""
    async with asyncio.timeout(TIMEOUT):
        while (state := channel.get_state()) is grpc.ChannelConnectivity.READY:
            await channel.wait_for_state_change(state)


async def start_call(router, engine):
    """Returns a call that runs on the engine, which stands still."""
    engine.stall()
    call = router.stub.Generate(greedy(), timeout=TIMEOUT)
    await engine.wait_until(lambda: engine.num_waiting or engine.num_running)
    return call


async def test_calls_of_an_old_connection_may_finish_and_the_next_ones_take_another(tmp_path):
    config = FakeEngineConfig(vocab_size=VOCAB_SIZE, tokenizer=small_tokenizer.save(tmp_path))
    async with FakeEngine(config) as engine, routing(engine.address, options=OPTIONS) as router:

        async def is_ready():
            return (await router.get("/readyz"))[0] == 200

        await until(is_ready)
        for is_in_time in (True, False):
            call = await start_call(router, engine)
            await left(router.client)
            if is_in_time:
                engine.resume()
                messages = [message async for message in call]
                assert messages[-1].finish.completion_token_count == 32
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                # What it ran is gone from the engine.
                await engine.wait_until(lambda: not engine.num_waiting + engine.num_running)
                engine.resume()
        again = [message async for message in router.stub.Generate(greedy(), timeout=TIMEOUT)]
        assert again[-1].finish.completion_token_count == 32
