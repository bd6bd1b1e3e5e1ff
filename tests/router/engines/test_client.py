import asyncio
from array import array
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from grpc_status import rpc_status

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire.sampling_params import SamplingParams
from protos.wire.status import Reason, error_status, to_rpc_status
from router.engines.client import ClientSettings, EngineClient
from router.engines.lifecycle import Lifecycle
from router.errors import EngineError, QueueFull
from router.placement.prefix_index import PrefixIndex
from router.types.engine_events import TokenRequest, Tokens
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import SERVICE, FakeEngine, FakeEngineConfig, expected_tokens

CONFIG = FakeEngineConfig(block_size=4)
SETTINGS = {"min_backoff": 0.01, "max_backoff": 0.05}
TIMEOUT = 10.0


class Listener:
    """Keeps the life and an index of one engine and wakes whoever waits for a change."""

    def __init__(self, address):
        self.life = Lifecycle(address, self.state_changed)
        self.index = PrefixIndex()
        self.updates = []
        self.tick = asyncio.Event()

    def check_model(self, model):
        self.index.add_engine("e", model.num_blocks, model.epoch)
        self.tick.set()
        return ""

    def cache_position(self):
        return self.index.position("e")

    async def cache_changed(self, update):
        self.updates.append(update)
        self.tick.set()
        return self.index.apply("e", update)

    def state_changed(self):
        self.tick.set()

    def load_reported(self):
        self.tick.set()

    async def wait_until(self, condition):
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.tick.clear()
                await self.tick.wait()


@asynccontextmanager
async def client_of(address, **settings):
    listener = Listener(address)
    client = EngineClient(listener.life, listener, ClientSettings(**(SETTINGS | settings)))
    task = asyncio.create_task(client.run())
    try:
        yield client, listener
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


@asynccontextmanager
async def connected(engine, **settings):
    async with client_of(engine.address, **settings) as (client, listener):
        await listener.wait_until(lambda: listener.life.state is EngineState.SERVING)
        yield client, listener


def request(prompt, max_tokens=8):
    return TokenRequest(
        request_id="r",
        model="fake",
        prompt_token_ids=array("i", prompt),
        sampling_params=SamplingParams(temperature=0.0, max_tokens=max_tokens),
    )


async def collect(stream):
    async with asyncio.timeout(TIMEOUT):
        return [event async for event in stream]


def tokens_of(events):
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


async def test_requests_submitted_together_travel_in_one_message():
    class Counting(FakeEngine):
        num_messages = 0

        async def _read(self, sink, messages):
            async def counted():
                async for message in messages:
                    self.num_messages += len(message.submissions) > 0
                    yield message

            await super()._read(sink, counted())

    async with Counting(CONFIG) as engine, connected(engine) as (client, _):
        streams = [client.submit(request([n, 1], 20)) for n in range(50)]
        results = [await collect(stream) for stream in streams]

        assert engine.num_messages == 1
        for number, events in enumerate(results):
            assert tokens_of(events) == expected_tokens([number, 1], 20)
        assert client.num_open_requests == 0


async def test_large_requests_travel_in_messages_of_bounded_size():
    class Measuring(FakeEngine):
        sizes = ()

        async def _read(self, sink, messages):
            async def measured():
                async for message in messages:
                    self.sizes += (message.ByteSize(),)
                    yield message

            await super()._read(sink, measured())

    async with Measuring(CONFIG) as engine, connected(engine) as (client, _):
        # What one client can send in its headers, times the requests of a busy moment.
        large = [replace(request([n, 1]), tracestate="x" * 100_000) for n in range(100)]
        streams = [client.submit(submitted) for submitted in large]
        for stream in streams:
            assert tokens_of(await collect(stream))

        assert sum(engine.sizes) > 10_000_000
        assert max(engine.sizes) < 4_200_000


async def test_request_closed_before_it_was_sent_is_never_sent():
    async with FakeEngine(CONFIG) as engine, connected(engine) as (client, _):
        client.submit(request([1])).close()
        await collect(client.submit(request([2])))

        assert [list(s.request.prompt_token_ids) for s in engine.submissions] == [[2]]


async def test_more_requests_than_allowed_are_refused_here():
    async with FakeEngine(CONFIG) as engine, connected(engine, max_open_requests=2) as (client, _):
        engine.stall()
        client.submit(request([1]))
        client.submit(request([2])).close()
        client.submit(request([3]))

        with pytest.raises(QueueFull, match="2 requests"):
            client.submit(request([4]))


async def test_submission_without_a_connection_is_engine_failed():
    async with client_of("127.0.0.1:1") as (client, listener):
        await listener.wait_until(lambda: listener.life.state is EngineState.UNAVAILABLE)

        with pytest.raises(EngineError) as raised:
            client.submit(request([1]))

        assert raised.value.status.reason == Reason.ENGINE_FAILED
        assert "127.0.0.1:1" in raised.value.status.message


async def test_loss_of_the_connection_fails_open_requests_and_is_followed_by_another():
    async with FakeEngine(CONFIG) as engine, connected(engine) as (client, listener):
        engine.stall()
        stream = client.submit(request([1]))
        await engine.wait_until(lambda: engine.num_waiting == 1)

        await engine.restart()

        with pytest.raises(EngineError) as raised:
            await collect(stream)
        assert raised.value.status.reason == Reason.ENGINE_FAILED
        await listener.wait_until(lambda: client.num_connections == 2)
        assert listener.life.model.epoch == engine.cache.epoch
        assert tokens_of(await collect(client.submit(request([1])))) == expected_tokens([1], 8)


async def test_limits_of_the_engine_are_known_once_connected():
    config = replace(CONFIG, max_num_seqs=3, max_num_batched_tokens=99)
    async with FakeEngine(config) as engine, connected(engine) as (_, listener):
        assert listener.life.model.max_num_seqs == 3
        assert listener.life.model.max_num_batched_tokens == 99


async def test_client_ends_when_cancelled_while_its_connection_is_failing():
    for _ in range(5):
        async with FakeEngine(CONFIG) as engine, connected(engine):
            # Leaving right after the loss meets the client in the middle of its clean-up.
            await engine.stop()


async def test_loss_of_the_cache_watch_costs_no_request_and_resumes():
    class Forgetful(FakeEngine):
        async def WatchCache(self, request, context):
            count = 0
            async for message in super().WatchCache(request, context):
                yield message
                count += 1
                if self.num_watches == 1 and count == 3:
                    return

    config = FakeEngineConfig(block_size=4, decode_step_seconds=0.0005)
    async with Forgetful(config) as engine, connected(engine) as (client, listener):
        # Before it a block could be stored, and the snapshot would then have a later number.
        await listener.wait_until(lambda: listener.updates)
        events = await collect(client.submit(request(range(8), 100)))

        await listener.wait_until(
            lambda: listener.index.num_blocks("e") == len(engine.cache.blocks)
        )
        assert tokens_of(events) == expected_tokens(range(8), 100)
        assert engine.num_watches == 2
        assert engine.num_snapshots == 1
        numbers = [update.sequence_number for update in listener.updates]
        assert numbers == list(range(len(numbers)))


async def test_large_cache_arrives_in_parts():
    async with FakeEngine(FakeEngineConfig(num_blocks=200_000)) as engine:
        engine.cache.store(range(150_000))
        async with connected(engine) as (_, listener):
            await listener.wait_until(lambda: listener.index.num_blocks("e") == 150_000)

            assert len(listener.updates) == 10


async def test_load_of_the_engine_is_known():
    config = FakeEngineConfig(
        block_size=1024, prefill_tokens_per_second=5000.0, decode_step_seconds=0.001
    )
    async with FakeEngine(config) as engine, connected(engine) as (client, listener):
        # All of it fits into one block.
        stream = client.submit(request(range(10), 1000))

        await listener.wait_until(lambda: listener.life.load.num_running == 1)

        assert listener.life.load.prefill_tokens_per_second == 5000.0
        assert listener.life.load.num_free_blocks == 1024 - 1
        stream.close()
        await listener.wait_until(lambda: listener.life.load.num_running == 0)
        assert listener.life.load.num_free_blocks == 1024


def first_message(engine):
    """What a good engine begins its streams with."""
    message = engine.identity()
    message.load.state = engine_pb2.ENGINE_STATE_SERVING
    return message


class Silent(FakeEngine):
    async def GenerateMany(self, request_iterator, context):
        await asyncio.Event().wait()
        yield


class Loadless(FakeEngine):
    async def GenerateMany(self, request_iterator, context):
        yield engine_pb2.GenerateManyResponse()


class Miscounting(FakeEngine):
    async def GenerateMany(self, request_iterator, context):
        yield first_message(self)
        yield engine_pb2.GenerateManyResponse(handles=[1], token_counts=[2], token_ids=[3])


class Contradictory(FakeEngine):
    async def GenerateMany(self, request_iterator, context):
        status = error_status(Reason.QUEUE_FULL, "full", domain="e")
        final = rpc_status.to_status(to_rpc_status(status))
        await context.abort(grpc.StatusCode.ABORTED, "torn", final.trailing_metadata)
        yield


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        (Silent, "sent nothing within 0.05 s"),
        (Loadless, "first message of its stream has no load"),
        (Miscounting, "token counts do not match"),
        (Contradictory, "ABORTED: torn"),
    ],
)
async def test_engine_that_breaks_the_contract_is_unavailable(kind, detail):
    async with kind(CONFIG) as engine, client_of(engine.address, call_timeout=0.05) as (_, it):
        await it.wait_until(lambda: detail in it.life.detail)

        assert it.life.state is EngineState.UNAVAILABLE


async def test_request_for_an_unknown_reason_of_the_end_is_internal():
    class Odd(FakeEngine):
        async def GenerateMany(self, request_iterator, context):
            yield first_message(self)
            async for message in request_iterator:
                if not message.submissions:
                    continue
                response = engine_pb2.GenerateManyResponse()
                handle = message.submissions[0].handle
                response.admissions.add(handle=handle)
                response.finishes.add(handle=handle, finish=engine_pb2.Finish(reason=9))
                yield response

    async with Odd(CONFIG) as engine, connected(engine) as (client, _):
        with pytest.raises(EngineError) as raised:
            await collect(client.submit(request([1])))

        assert raised.value.status.reason == Reason.INTERNAL


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({"name": "a.json", "size_bytes": 3, "sha256": "0" * 64}, "SHA-256"),
        ({"name": "a.json", "size_bytes": 4}, "SHA-256"),
        ({"name": "../a.json", "size_bytes": 3}, "a name that is not a plain file name"),
        ({"name": "b/a.json", "size_bytes": 3}, "a name that is not a plain file name"),
    ],
)
async def test_tokenizer_file_that_is_not_what_it_says_is_refused(header, fault):
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    class Lying(FakeEngine):
        async def GetTokenizer(self, request, context):
            yield engine_pb2.GetTokenizerResponse(
                file=engine_pb2.TokenizerFile(**({"sha256": digest} | header))
            )
            yield engine_pb2.GetTokenizerResponse(chunk=b"abc")

    async with Lying(CONFIG) as engine, connected(engine) as (client, _):
        with pytest.raises(EngineError, match=fault):
            await client.get_tokenizer("")


async def test_tokenizer_transfer_cut_by_the_loss_of_the_engine_is_an_error_not_a_cancellation():
    class Slow(FakeEngine):
        async def GetTokenizer(self, request, context):
            yield engine_pb2.GetTokenizerResponse(file=engine_pb2.TokenizerFile(name="a"))
            self.asked.set()
            await asyncio.Event().wait()

    engine = Slow(CONFIG)
    engine.asked = asyncio.Event()
    async with engine, connected(engine) as (client, _):
        task = asyncio.create_task(client.get_tokenizer(""))
        await engine.asked.wait()

        await engine.restart()

        with pytest.raises(EngineError) as raised:
            await task
        assert raised.value.status.reason == Reason.ENGINE_FAILED


@asynccontextmanager
async def garbling(method, handler):
    """The address of an engine that answers one method with bytes that are no message."""

    async def stream(request, context):
        yield b"\xff"
        await asyncio.Event().wait()

    async def answer(request, context):
        return b"\xff"

    class Methods(dict):
        def add_generic_rpc_handlers(self, handlers):
            pass

        def add_registered_method_handlers(self, service, handlers):
            self.update(handlers)

    behaviour = answer if handler is grpc.unary_unary_rpc_method_handler else stream
    async with FakeEngine(CONFIG) as engine:
        methods = Methods()
        engine_pb2_grpc.add_EngineServiceServicer_to_server(engine, methods)
        methods[method] = handler(behaviour)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield f"127.0.0.1:{port}"
        await server.stop(None)


@pytest.mark.parametrize(
    ("method", "handler", "detail"),
    [
        ("GetModelInfo", grpc.unary_unary_rpc_method_handler, "cannot be parsed"),
        ("GenerateMany", grpc.stream_stream_rpc_method_handler, "cannot be parsed"),
    ],
)
async def test_engine_that_sends_what_cannot_be_read_is_unavailable(method, handler, detail):
    async with garbling(method, handler) as address, client_of(address) as (_, listener):
        await listener.wait_until(lambda: detail in listener.life.detail)

        assert listener.life.state is EngineState.UNAVAILABLE


async def test_cache_change_that_cannot_be_read_keeps_nobody_from_serving(caplog):
    handler = grpc.unary_stream_rpc_method_handler
    async with garbling("WatchCache", handler) as address, client_of(address) as (client, listener):
        await listener.wait_until(lambda: listener.life.state is EngineState.SERVING)
        async with asyncio.timeout(TIMEOUT):
            while "cannot be parsed" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        events = await collect(client.submit(request([1, 2])))

        assert tokens_of(events) == expected_tokens([1, 2], 8)


async def test_client_that_has_ended_takes_no_request():
    async with FakeEngine(CONFIG) as engine:
        async with connected(engine) as (client, _):
            pass

        with pytest.raises(EngineError, match="its connection was closed"):
            client.submit(request([1]))
