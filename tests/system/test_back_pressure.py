"""A router as a process of its own and clients that read slowly, never, or go away."""

import asyncio
import random
import signal
import sys
from contextlib import asynccontextmanager

import grpc
import pytest

from protos.pagestream.router.v1 import router_pb2 as pb
from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire import channel
from tests.fakes.checked_stream import CheckedStream
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.system.fleets import check, check_nothing_left, metric, tasks_at_rest, until
from tests.system.test_router import ROOT, Status, routing

MAX_TOKENS = 30_000
CONFIG = FakeEngineConfig(max_model_len=1 << 20, num_blocks=1 << 17, max_num_seqs=64)
NARROW = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
"""Options of a client that lets the router send it little more than it reads."""

NEVER_READS = """
import sys, grpc
from protos.pagestream.router.v1 import router_pb2 as pb, router_pb2_grpc

options = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
stub = router_pb2_grpc.RouterServiceStub(grpc.insecure_channel(sys.argv[1], options=options))
request = pb.GenerateRequest.FromString(bytes.fromhex(sys.argv[2]))
calls = [stub.Generate(request) for _ in range(int(sys.argv[3]))]
for call in calls:
    call.initial_metadata()
print("asked", flush=True)
sys.stdin.read()  # until its owner ends
"""


def request() -> pb.GenerateRequest:
    params = pb.SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(100)), sampling_params=params)


def operations(router) -> str:
    return f"127.0.0.1:{router.operations_port}"


@asynccontextmanager
async def service(*options, config=CONFIG):
    async with FakeEngine(config) as engine, routing(engine.address, options=options) as router:
        await router.watch_health(Status.SERVING)
        address = operations(router)
        num_tasks = await tasks_at_rest(address)

        async def check_rest(num_unread=0):
            """A call whose client has not read its end yet keeps one task of gRPC's."""
            await check_nothing_left(address, [engine.address], num_tasks + num_unread)

        yield engine, router, check_rest


async def wait_for_slow_readers(router, count):
    """Waits until so many requests were ended because of their clients."""

    async def are_ended():
        found = await metric(operations(router), "requests_total", outcome="slow_reader")
        return found == count

    await until(are_ended)


def stream(max_tokens=MAX_TOKENS, number=0, **fields) -> CheckedStream:
    """Returns a greedy stream with a prompt of 100 tokens, another one for each number."""
    return CheckedStream([*range(99), number], max_tokens, **fields)


async def check_served(router, max_tokens):
    """One more request gets all of its tokens."""
    served = stream(max_tokens)
    await served.run(router.stub, 30)
    check([served])


@pytest.fixture
async def narrow_client():
    """Returns a function that makes such a client of a router."""
    channels = []

    def make(router):
        # Of an option that is given twice, gRPC takes the first.
        options = [*NARROW, *channel.client_options()]
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
    async with service(*options, *bound) as (_, router, check_rest):
        stub = narrow_client(router)
        slow = [stream(number=number) for number in range(32)]
        for one in slow:
            one.ask(stub, 120)
        for one in slow:
            await one.call.initial_metadata()

        await check_served(router, 2000)
        assert (await router.get("/livez"))[0] == 200

        await wait_for_slow_readers(router, 32)
        await check_rest(num_unread=32)
        for one in slow:
            await one.read()
            assert one.token_ids
            assert not one.fault_so_far
            assert one.status.reason == "SLOW_READER"
            assert one.status.metadata == {"slow_reader_seconds": "0.5"}
            assert one.status.retry_after is None
        await check_rest()


async def test_tokens_beyond_the_bound_end_a_request_before_its_time(narrow_client):
    options = ("--slow-reader-seconds", "600", "--max-buffered-tokens", "1000")
    # Two minutes of tokens, of which a tenth of a second is too much.
    config = FakeEngineConfig(max_model_len=1 << 20, num_blocks=1 << 17, decode_step_seconds=1e-4)
    async with service(*options, config=config) as (engine, router, check_rest):
        slow = stream(1_000_000)
        engine.stall()
        slow.ask(narrow_client(router), 60)
        await engine.wait_until(lambda: engine.num_waiting + engine.num_running)

        engine.resume()
        await engine.wait_until(lambda: not engine.num_waiting + engine.num_running)

        assert await metric(operations(router), "requests_in_flight") == 1
        await slow.read()
        assert slow.token_ids
        assert not slow.fault_so_far
        assert slow.status.reason == "SLOW_READER"
        assert slow.status.metadata == {"max_buffered_tokens": "1000"}
        await check_rest()


async def test_stopped_client_is_cut_off_and_killed_one_leaves_nothing():
    async with service("--slow-reader-seconds", "0.5") as (_, router, check_rest):
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", NEVER_READS, f"127.0.0.1:{router.port}"),
            *(request().SerializeToString().hex(), "8"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert await asyncio.wait_for(client.stdout.readline(), 20) == b"asked\n"
            client.send_signal(signal.SIGSTOP)

            await wait_for_slow_readers(router, 8)
            await check_rest(num_unread=8)
        finally:
            client.kill()
            await client.wait()
        await check_served(router, 100)
        await check_rest()


async def test_thousand_cancelled_streams_leave_nothing():
    rng = random.Random(7)
    # Half of each batch waits in the engine until some of the others are gone.
    config = FakeEngineConfig(max_num_seqs=50, decode_step_seconds=0.002)
    streams = [stream(2000, number % 500) for number in range(1000)]
    async with service(config=config) as (_, router, check_rest):

        async def ask_and_leave(number):
            one = streams[number]
            one.ask(router.stub, 60)
            if number % 2:
                await asyncio.sleep(rng.uniform(0, 0.2))
            else:
                await one.read(rng.randrange(10))
            one.leave()

        for batch in range(10):
            async with asyncio.TaskGroup() as tasks:
                for number in range(100):
                    tasks.create_task(ask_and_leave(100 * batch + number))
            assert (await router.get("/livez"))[0] == 200

        await check_rest()
        assert sum(len(one.token_ids) for one in streams) > 1000
        assert [one.fault_so_far for one in streams if one.fault_so_far or one.error] == []
        # Those cancelled before the router heard of them are not counted.
        found = await metric(operations(router), "requests_total", outcome="cancelled")
        assert 400 < found <= 1000


async def test_deadline_priority_and_salt_reach_the_engine_and_a_deadline_ends_there():
    async with service() as (engine, router, check_rest):
        asked = stream(8, request_id="mine", priority=-3, cache_salt="s")
        await asked.run(router.stub, 30)
        check([asked])

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
        await check_rest()


async def test_queued_prompt_tokens_over_the_bound_are_refused_until_an_engine_begins():
    async with service("--max-queued-prompt-tokens", "150") as (engine, router, check_rest):
        engine.stall()
        waiting, refused = stream(8), stream(8)
        waiting.ask(router.stub, 30)
        await engine.wait_until(lambda: engine.num_waiting or engine.num_running)

        await refused.run(router.stub, 30)

        assert (refused.status.reason, refused.status.retry_after) == ("QUEUE_FULL", 1.0)
        numbers = {"value": "100", "held": "100", "max_queued_prompt_tokens": "150"}
        assert refused.status.metadata == numbers
        assert await metric(operations(router), "queued_prompt_tokens") == 100
        engine.resume()
        await waiting.read()
        check([waiting])
        await check_served(router, 8)
        await check_rest()
