"""Whatever an engine does, or is done to what it sends, ends with that engine's connection."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from grpc_health.v1 import health_pb2

from protos.wire.status import Reason
from router.engines import client as engine_client
from router.engines import fleet as fleet_module
from router.engines import quarantine
from router.engines.client import EngineClient
from router.engines.connection_loss import Fault
from router.engines.lifecycle import Stage
from router.errors import EngineError
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import SERVICE, FakeEngine, expected_tokens
from tests.router.engines.test_client import Listener, client_of, connected, request, tokens_of
from tests.router.engines.test_client import collect as collect_stream
from tests.router.fleets import CONFIG, SLOW, collect, running, states, until

Status = health_pb2.HealthCheckResponse
MEASURED = replace(SLOW, prefill_tokens_per_second=1e9)


class Panic(BaseException):
    """What a library in Rust raises is no Exception."""


@pytest.fixture(autouse=True)
def short_quarantine(monkeypatch):
    monkeypatch.setattr(quarantine, "_MIN_SECONDS", 0.05)


@pytest.mark.parametrize("kind", [KeyError, Panic])
@pytest.mark.parametrize("callback", ["check_model", "cache_changed", "load_reported"])
async def test_unexpected_error_makes_the_engine_unavailable_and_it_returns(
    monkeypatch, caplog, kind, callback
):
    def fail(*_):
        raise kind("boom")

    async with FakeEngine(CONFIG) as engine, connected(engine) as (client, listener):
        monkeypatch.setattr(Listener, callback, fail)
        engine.stall()
        stream = client.submit(request([1]))
        engine.cache.store([1])
        engine._publish()
        if callback == "check_model":
            await engine.restart()

        await listener.wait_until(lambda: "unexpected" in listener.life.detail)

        assert listener.life.state is EngineState.UNAVAILABLE
        assert f"unexpected {kind.__name__}: " in listener.life.detail
        assert client.num_faults[Fault.UNEXPECTED] >= 1
        assert "boom" in caplog.text
        assert "Traceback" not in caplog.text
        with pytest.raises(EngineError) as raised:
            await collect_stream(stream)
        assert raised.value.status.reason == Reason.ENGINE_FAILED
        monkeypatch.undo()
        engine.resume()
        await listener.wait_until(lambda: listener.life.state is EngineState.SERVING)
        assert tokens_of(await collect_stream(client.submit(request([2])))) == expected_tokens(
            [2], 8
        )


@pytest.mark.parametrize("kind", [ValueError, Panic])
async def test_fault_of_one_client_is_not_the_other_engines_end(monkeypatch, kind):
    monkeypatch.setattr(fleet_module, "RETRY_SECONDS", 0.02)
    run = EngineClient.run
    faulty = []

    async def run_or_fail(client):
        if client.address in faulty:
            faulty.clear()
            raise kind("boom")
        await run(client)

    monkeypatch.setattr(EngineClient, "run", run_or_fail)
    async with FakeEngine(CONFIG) as first, FakeEngine(CONFIG) as second:
        faulty.append(first.address)
        async with running([first.address, second.address]) as fleet:
            await until(lambda: states(fleet) == [EngineState.SERVING] * 2)

            for number in range(4):
                _, tokens, _ = await collect(fleet, request([number]))
                assert tokens == expected_tokens([number], 8)
            assert fleet.statistics().num_faults[Fault.UNEXPECTED] == 1


async def stall(engine, client, listener):
    """Makes a connected engine stall and waits until the client has seen it."""
    engine.stall()
    client.submit(request([1]))
    await listener.wait_until(lambda: "stalled" in listener.life.detail)


async def test_engine_that_stalled_is_asked_for_its_health_before_it_gets_a_request(monkeypatch):
    monkeypatch.setattr(engine_client, "TICK_SECONDS", 0.005)

    class Asked(FakeEngine):
        num_asked = 0

        async def GetModelInfo(self, request, context):
            self.num_asked += 1
            return await super().GetModelInfo(request, context)

    async with Asked(MEASURED) as engine, connected(engine) as (client, listener):
        await engine.health.set(SERVICE, Status.NOT_SERVING)
        await stall(engine, client, listener)
        said = "its health check says NOT_SERVING"
        await listener.wait_until(lambda: said in listener.life.detail)
        assert listener.life.stage is Stage.QUARANTINED
        assert listener.life.state is EngineState.UNAVAILABLE
        # Again and again, and for nothing but its health.
        for _ in range(3):
            listener.tick.clear()
            await listener.tick.wait()
        assert engine.num_asked == 1

        await engine.health.set(SERVICE, Status.SERVING)
        engine.resume()

        await listener.wait_until(lambda: listener.life.state is EngineState.SERVING)
        assert listener.life.stage is not Stage.QUARANTINED
        assert client.num_faults == {Fault.STALLED: 1}


@pytest.mark.parametrize("says", ["NOT_FOUND", "SERVICE_UNKNOWN", "99"])
async def test_engine_without_a_health_to_speak_of_stays_alone(monkeypatch, says):
    monkeypatch.setattr(engine_client, "TICK_SECONDS", 0.005)
    name = "no.such.Service" if says == "NOT_FOUND" else SERVICE
    monkeypatch.setattr(engine_client, "_SERVICE_NAME", name)
    async with FakeEngine(MEASURED) as engine, connected(engine) as (client, listener):
        if says != "NOT_FOUND":
            await engine.health.set(SERVICE, 99 if says == "99" else Status.SERVICE_UNKNOWN)
        await stall(engine, client, listener)

        await listener.wait_until(lambda: f"its health check says {says}" in listener.life.detail)

        assert listener.life.stage is Stage.QUARANTINED


async def test_engine_of_another_start_than_its_description_is_not_used():
    class Described(FakeEngine):
        async def GetModelInfo(self, request, context):
            response = await super().GetModelInfo(request, context)
            response.epoch += self.is_wrong
            return response

    engine = Described(CONFIG)
    engine.is_wrong = True
    async with engine, client_of(engine.address) as (client, listener):
        await listener.wait_until(lambda: client.num_faults[Fault.MISMATCH] > 1)
        assert listener.life.state is EngineState.UNAVAILABLE
        assert client.num_connections == 0

        engine.is_wrong = False

        await listener.wait_until(lambda: listener.life.state is EngineState.SERVING)


async def test_cache_of_another_epoch_never_reaches_the_index():
    class Elsewhere(FakeEngine):
        async def WatchCache(self, request, context):
            async for message in super().WatchCache(request, context):
                message.epoch += 1
                yield message

    async with Elsewhere(CONFIG) as engine, connected(engine) as (client, listener):
        await until(lambda: client.num_faults[Fault.MISMATCH] > 1)

        # What is known of the cache is a hint: the requests do not suffer.
        assert tokens_of(await collect_stream(client.submit(request([1])))) == expected_tokens(
            [1], 8
        )
        assert listener.updates == []


class Relay:
    """An address that leads to one engine and, once that has described its model, to another."""

    def __init__(self, first, second):
        self._ports = [int(engine.address.rpartition(":")[2]) for engine in (first, second)]
        self._mark = first.config.fingerprint.encode()
        self.num_switches = 0

    @asynccontextmanager
    async def serving(self):
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _relay(self, reader, writer):
        port = self._ports[self.num_switches > 0]
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError, ConnectionError):
            up = self._pump(reader, far_writer, is_answer=False)
            await asyncio.gather(up, self._pump(far_reader, writer, is_answer=True))

    async def _pump(self, reader, writer, *, is_answer):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
            if is_answer and not self.num_switches and self._mark in data:
                self.num_switches += 1
                break
        writer.close()


async def test_address_that_leads_to_another_model_after_the_description_serves_that_one_only():
    other = replace(CONFIG, model_name="other", fingerprint="0" * 32)
    async with FakeEngine(CONFIG) as first, FakeEngine(other) as second:
        relay = Relay(first, second)
        async with relay.serving() as address, running([address]) as fleet:
            await until(lambda: states(fleet) == [EngineState.SERVING])

            assert relay.num_switches == 1
            assert [model.info.name for model in fleet.models()] == ["other"]
            assert fleet.statistics().num_connections == 1


async def test_violation_counts_as_the_cause_of_a_failover():
    class Wrong(FakeEngine):
        async def GenerateMany(self, request_iterator, context):
            num_tokens = 0
            async for message in super().GenerateMany(request_iterator, context):
                num_tokens += len(message.token_ids)
                if message.token_ids and num_tokens > 4:
                    message.token_ids[-1] = self.config.vocab_size
                yield message

    causes = []

    class Observer:
        def request_resumed(self, error, num_tokens):
            causes.append(error.status.metadata.get("cause"))

        def of_model(self, name):
            return self

        def __getattr__(self, name):
            return lambda *_: None

    async with Wrong(SLOW) as wrong, FakeEngine(SLOW) as good:
        options = {"placement": "round_robin", "observers": Observer()}
        async with running([wrong.address, good.address], **options) as fleet:
            await until(lambda: states(fleet) == [EngineState.SERVING] * 2)

            results = [await collect(fleet, request(range(8), 30)) for _ in range(2)]

            assert [tokens for _, tokens, _ in results] == [expected_tokens(range(8), 30)] * 2
            # Left alone for some seconds, it may be tried again by then.
            assert causes
            assert set(causes) == {"violation"}
