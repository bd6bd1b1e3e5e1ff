"""A router as a process of its own and clients that read slowly, never, or go away."""

import asyncio
import random
import re
import signal
import sys
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_status import rpc_status

from protos.pagestream.router.v1 import router_pb2 as pb
from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire import channel
from protos.wire.status import unpack
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.system.test_router import ROOT, Status, routing

MAX_TOKENS = 30_000
CONFIG = FakeEngineConfig(max_model_len=1 << 20, num_blocks=1 << 20, max_num_seqs=64)
NARROW = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
"""Options of a client that lets the router send it little more than it reads."""

NEVER_READS = """
import sys, time, grpc
from protos.pagestream.router.v1 import router_pb2 as pb, router_pb2_grpc

options = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
stub = router_pb2_grpc.RouterServiceStub(grpc.insecure_channel(sys.argv[1], options=options))
request = pb.GenerateRequest.FromString(bytes.fromhex(sys.argv[2]))
calls = [stub.Generate(request) for _ in range(int(sys.argv[3]))]
for call in calls:
    call.initial_metadata()
print("asked", flush=True)
time.sleep(600)
"""


def request(max_tokens=MAX_TOKENS, **fields) -> pb.GenerateRequest:
    params = pb.SamplingParams(temperature=0, max_tokens=max_tokens)
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=range(100)), sampling_params=params, **fields
    )


@asynccontextmanager
async def service(*options, config=CONFIG):
    async with FakeEngine(config) as engine, routing(engine.address, options=options) as router:
        await router.watch_health(Status.SERVING)
        yield engine, router


async def values(router) -> dict[str, float]:
    """Returns the series of the router by name and labels."""
    _, text = await router.get("/metrics")
    rows = re.findall(r"^(?:pagestream_router|process)_(\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


async def wait_for(router, name, wanted) -> dict[str, float]:
    """Waits until a series has a value; returns all."""
    async with asyncio.timeout(30):
        # Nobody announces what a series is.
        while (found := await values(router))[name] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def check_nothing_left(engine, router):
    """Neither the engine nor the router holds anything of any request."""
    await engine.wait_until(lambda: not engine.num_running + engine.num_waiting)
    await wait_for(router, "requests_in_flight", 0)
    found = await wait_for(router, "index_speculative_entries", 0)
    assert found["request_bytes"] == 0
    assert found["queued_prompt_tokens"] == 0
    assert found[f'engine_requests_in_flight{{engine="{engine.address}"}}'] == 0


async def end_of(call):
    """Reads a call to its end; returns its last message, and the error that it ended with."""
    message = None
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            message = response
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)
        return message, unpack(status.code, status.message, status.details)
    return message, None


@pytest.fixture
async def narrow_client():
    """Returns a function that makes such a client of a router."""
    channels = []

    def make(router):
        options = [*channel.client_options(), *NARROW]
        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{router.port}", options=options))
        return router_pb2_grpc.RouterServiceStub(channels[-1])

    yield make
    for made in channels:
        await made.close()


@pytest.mark.parametrize("max_buffered_tokens", [1000, 1_000_000])
async def test_clients_that_never_read_are_cut_off_while_others_are_served(
    narrow_client, max_buffered_tokens
):
    """With the larger bound, the engine has sent all long before the time is over."""
    options = ("--slow-reader-seconds", "0.5", "--max-concurrent-requests", "40")
    bound = ("--max-buffered-tokens", str(max_buffered_tokens))
    async with service(*options, *bound) as (engine, router):
        stub = narrow_client(router)
        slow = [stub.Generate(request(request_id=f"{i}"), timeout=120) for i in range(32)]
        for call in slow:
            await call.initial_metadata()

        served, error = await end_of(router.stub.Generate(request(2000), timeout=30))
        assert error is None
        assert served.finish.completion_token_count == 2000
        assert (await router.get("/livez"))[0] == 200

        await wait_for(router, 'requests_total{outcome="slow_reader"}', 32)
        await check_nothing_left(engine, router)
        for message, error in [await end_of(call) for call in slow]:
            assert message.token_ids
            assert error.reason == "SLOW_READER"
            assert error.metadata == {"slow_reader_seconds": "0.5"}
            assert error.retry_after is None


async def test_tokens_beyond_the_bound_end_a_request_before_its_time(narrow_client):
    options = ("--slow-reader-seconds", "600", "--max-buffered-tokens", "1000")
    # Two minutes of tokens, of which a tenth of a second is too much.
    config = FakeEngineConfig(max_model_len=1 << 20, num_blocks=1 << 20, decode_step_seconds=1e-4)
    async with service(*options, config=config) as (engine, router):
        call = narrow_client(router).Generate(request(1_000_000), timeout=60)
        await call.initial_metadata()
        assert engine.num_running == 1

        await engine.wait_until(lambda: not engine.num_running)

        assert (await values(router))["requests_in_flight"] == 1
        _, error = await end_of(call)
        assert (error.reason, error.metadata) == ("SLOW_READER", {"max_buffered_tokens": "1000"})
        await check_nothing_left(engine, router)


async def test_stopped_client_is_cut_off_and_killed_one_leaves_nothing():
    async with service("--slow-reader-seconds", "0.5") as (engine, router):
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", NEVER_READS, f"127.0.0.1:{router.port}"),
            *(request().SerializeToString().hex(), "8"),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert await asyncio.wait_for(client.stdout.readline(), 20) == b"asked\n"
            client.send_signal(signal.SIGSTOP)

            await wait_for(router, 'requests_total{outcome="slow_reader"}', 8)
            await check_nothing_left(engine, router)
        finally:
            client.kill()
            await client.wait()
        served, error = await end_of(router.stub.Generate(request(100), timeout=30))
        assert error is None
        assert served.finish.completion_token_count == 100


async def test_thousand_cancelled_streams_leave_nothing():
    rng = random.Random(7)
    # Half of each batch waits in the engine until some of the others are gone.
    config = FakeEngineConfig(max_num_seqs=50, decode_step_seconds=0.002)
    async with service(config=config) as (engine, router):

        async def ask_and_leave(number):
            call = router.stub.Generate(request(2000, request_id=f"{number}"), timeout=60)
            if number % 2:
                await asyncio.sleep(rng.uniform(0, 0.2))
            else:
                for _ in range(rng.randrange(10)):
                    await call.read()
            call.cancel()

        for batch in range(10):
            async with asyncio.TaskGroup() as tasks:
                for number in range(100):
                    tasks.create_task(ask_and_leave(100 * batch + number))
            assert (await router.get("/livez"))[0] == 200

        await check_nothing_left(engine, router)
        found = await values(router)
        # Those cancelled before the router heard of them are not counted.
        assert 400 < found['requests_total{outcome="cancelled"}'] <= 1000


async def test_deadline_priority_and_salt_reach_the_engine_and_a_deadline_ends_there():
    async with service() as (engine, router):
        asked = request(8, request_id="mine", priority=-3, cache_salt="s")
        assert (await end_of(router.stub.Generate(asked, timeout=30)))[1] is None

        (sent,) = engine.submissions
        assert (sent.request.request_id, sent.request.priority) == ("mine", -3)
        assert sent.request.cache_salt == "s"
        # gRPC rounds up what it writes on the wire.
        assert 0 < sent.timeout.ToTimedelta().total_seconds() < 31

        engine.stall()
        call = router.stub.Generate(request(), timeout=0.5)
        await engine.wait_until(lambda: engine.num_waiting or engine.num_running)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await check_nothing_left(engine, router)


async def test_queued_prompt_tokens_over_the_bound_are_refused_until_an_engine_begins():
    async with service("--max-queued-prompt-tokens", "150") as (engine, router):
        engine.stall()
        waiting = router.stub.Generate(request(8), timeout=30)
        await engine.wait_until(lambda: engine.num_waiting or engine.num_running)

        _, error = await end_of(router.stub.Generate(request(8), timeout=30))

        assert (error.reason, error.retry_after) == ("QUEUE_FULL", 1.0)
        assert error.metadata == {"value": "100", "held": "100", "max_queued_prompt_tokens": "150"}
        assert (await values(router))["queued_prompt_tokens"] == 100
        engine.resume()
        assert (await end_of(waiting))[1] is None
        assert (await end_of(router.stub.Generate(request(8), timeout=30)))[1] is None
        await check_nothing_left(engine, router)
