"""A peer whose machine is gone sends no farewell: only unanswered pings tell of it."""

import asyncio
import contextlib

import grpc
import pytest

from protos.pagestream.engine.v1 import engine_pb2_grpc
from protos.wire.channel import client_options
from tests.engine_service.server.harness import read, running_engine, status_of, submission

pytestmark = pytest.mark.slow  # a ping every 10 s, 5 s for its answer


class SilencingProxy:
    """Passes bytes on until it is told to swallow them, with both connections left open."""

    def __init__(self, port):
        self.is_silent = False
        self._port = port
        self._writers = []

    @contextlib.asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            # The transports are gone one turn of the loop later.
            await asyncio.sleep(0)

    async def _handle(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if not self.is_silent:
                    writer.write(data)


async def test_requests_of_a_client_that_fell_silent_are_cancelled():
    async with _silenced_stream() as (engine, proxy, _):
        request = await engine.core.next_request()
        proxy.is_silent = True
        assert await engine.core.next_cancelled_id() == request.request_id


async def test_client_of_a_server_that_fell_silent_is_told():
    async with _silenced_stream() as (engine, proxy, call):
        await engine.core.next_request()
        proxy.is_silent = True
        assert (await status_of(call)).code == grpc.StatusCode.UNAVAILABLE.value[0]


@contextlib.asynccontextmanager
async def _silenced_stream():
    async with running_engine() as engine:
        proxy = SilencingProxy(engine.server.port)
        async with (
            proxy.listening() as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=client_options()) as channel,
        ):
            call = engine_pb2_grpc.EngineServiceStub(channel).GenerateMany()
            await read(call)
            await call.write(submission(1))
            yield engine, proxy, call
