"""What servers send is held to bounds, too: damaged, too much of it, or a bomb."""

import tracemalloc
from contextlib import asynccontextmanager

import grpc
import pytest

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire.channel import ENGINE_RESPONSE_BYTES, client_options
from protos.wire.message_parser import Malformed
from protos.wire.wire_format import packed
from servicekit.checked_channel import CheckedChannel
from servicekit.handlers import RefusalLog

SERVICE = engine_pb2.DESCRIPTOR.services_by_name["EngineService"]
GOOD = engine_pb2.GenerateManyResponse(handles=[1], token_counts=[1], token_ids=[5])


@asynccontextmanager
async def answering(*contents):
    """A stub whose GenerateMany gets these bytes, and the methods whose messages were refused."""
    refused = []

    async def generate_many(requests, context):
        for content in contents:
            await context.write(content)

    handler = grpc.stream_stream_rpc_method_handler(generate_many)
    handlers = {"GenerateMany": handler}
    options = [("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options, compression=grpc.Compression.Gzip)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
            checked = CheckedChannel(channel, SERVICE, address, RefusalLog(refused.append))
            yield engine_pb2_grpc.EngineServiceStub(checked), refused
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff" * 10, id="damaged"),
        pytest.param(packed(6, b"") * 257, id="failures"),
        pytest.param(packed(6, packed(2, packed(3, b"") * 9)), id="details"),
        pytest.param(packed(4, b"") * 1_000_000, id="admissions"),
        pytest.param(packed(3, bytes(4 * 131_073)), id="tokens"),
        pytest.param(packed(3, b"") * 100_000, id="lists of no tokens"),
        pytest.param(packed(7, b"") * 1_000_000, id="loads that merge"),
    ],
)
async def test_message_that_cannot_be_taken_arrives_as_none(content, caplog):
    async with answering(GOOD.SerializeToString(), content) as (stub, refused):
        call = stub.GenerateMany(timeout=30)
        assert await call.read() == GOOD
        assert await call.read() is None
    assert refused == ["EngineService/GenerateMany"]
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage().startswith("message refused method=EngineService/GenerateMany peer=")


async def test_bomb_of_an_engine_ends_the_call_and_takes_no_memory():
    tracemalloc.start()
    async with answering(GOOD.SerializeToString(), bytes(20 * ENGINE_RESPONSE_BYTES)) as (stub, _):
        call = stub.GenerateMany(timeout=30)
        assert await call.read() == GOOD
        tracemalloc.reset_peak()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 21 * ENGINE_RESPONSE_BYTES, "what the test's own server holds, and no more"


def test_burst_of_refusals_is_one_line_in_the_log(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    counted = []
    log = RefusalLog(counted.append)
    for _ in range(1000):
        log.add("S/M", "peer", Malformed(text="why"))
    now += 6
    log.add("S/M", "peer", Malformed(text="why"))

    assert len(counted) == 1001
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "message refused method=S/M peer=peer num_unlogged=0 error=why"
    assert second == "message refused method=S/M peer=peer num_unlogged=999 error=why"
