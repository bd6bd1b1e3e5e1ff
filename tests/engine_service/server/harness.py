"""A real EngineServer over real gRPC, and a core whose every word the test says itself."""

import asyncio
import contextlib
import multiprocessing
from array import array

import grpc
from grpc_status import rpc_status

from engine_service.config import ServerOptions
from engine_service.core.types import (
    Admission,
    CacheDelta,
    Finish,
    FinishReason,
    StepOutput,
    StepStats,
    int32_array,
)
from engine_service.server.engine_server import EngineServer
from engine_service.server.tokenizer_files import TokenizerFiles
from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire import status
from protos.wire.channel import client_options
from tests.engine_service.core.fake_executor import make_info

MODEL = make_info().model_name

WAIT_SECONDS = 30.0
"""Bounds every wait; nothing takes that long unless it is broken."""


class ScriptedCore:
    """The far end of the server's pipe. Requests queue up until the test takes them."""

    def __init__(self):
        self.pipe_of_server, self._pipe = multiprocessing.Pipe()
        self._requests = []
        self._cancelled_ids = []
        self._describes_blocks = []

    def send(self, message):
        self._pipe.send(message)

    def step(self, tokens=None, *, stored=(), removed=(), contents=None, stats=None, **fields):
        """Sends one step's output; `tokens` maps request IDs to new tokens."""
        tokens = tokens or {}
        self.send(
            StepOutput(
                request_ids=array("q", tokens),
                token_counts=int32_array([len(ids) for ids in tokens.values()]),
                token_ids=int32_array([token for ids in tokens.values() for token in ids]),
                cache_delta=CacheDelta(
                    stored=array("Q", stored), removed=array("Q", removed), contents=contents
                ),
                stats=stats or StepStats(),
                **fields,
            )
        )

    async def next_request(self):
        """Waits for the next request in order of arrival."""
        while not self._requests:
            await self._receive()
        return self._requests.pop(0)

    async def next_cancelled_id(self):
        """Waits for the next cancellation."""
        while not self._cancelled_ids:
            await self._receive()
        return self._cancelled_ids.pop(0)

    async def next_describes_blocks(self):
        """Waits for the next word on whether cached blocks are to be described."""
        while not self._describes_blocks:
            await self._receive()
        return self._describes_blocks.pop(0)

    def die(self):
        """Ends the pipe as a killed process does."""
        self._pipe.close()

    async def _receive(self):
        if not await asyncio.to_thread(self._pipe.poll, WAIT_SECONDS):
            raise TimeoutError("the server sent nothing to the core")
        message = self._pipe.recv()
        self._requests.extend(message.requests)
        self._cancelled_ids.extend(message.cancelled_ids)
        if message.describes_blocks is not None:
            self._describes_blocks.append(message.describes_blocks)


class Engine:
    """A server under test, its core and a client's stub."""

    def __init__(self, server, core, channel):
        self.server = server
        self.core = core
        self.channel = channel
        self.stub = engine_pb2_grpc.EngineServiceStub(channel)

    async def http(self, path, method="GET"):
        """Returns status code and body of the operations port's answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.operations_port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        async with asyncio.timeout(WAIT_SECONDS):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    async def metric(self, series):
        """Returns the value of one series as the operations port tells it.

        All have the name of the model, which need not be given.
        """
        name, _, labels = series.rstrip("}").partition("{")
        all_labels = {*filter(None, labels.split(",")), f'model_name="{MODEL}"'}
        series = f"{name}{{{','.join(sorted(all_labels))}}}"
        _, text = await self.http("/metrics")
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name == f"pagestream_engine_{series}":
                return float(value)
        raise KeyError(series)


@contextlib.asynccontextmanager
async def starting_engine(core=None, **options):
    """Yields a server that listens and whose core has not been heard of."""
    core = core or ScriptedCore()
    values = {
        "port": 0,
        "operations_port": 0,
        "drain_grace_seconds": WAIT_SECONDS,
        # A core that only speaks when the test says so.
        "core_silence_seconds": 86_400,
        **options,
    }
    async with (
        EngineServer.listening(ServerOptions(**values), MODEL) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=client_options()) as channel,
    ):
        yield Engine(server, core, channel)


@contextlib.asynccontextmanager
async def running_engine(info=None, tokenizer=None, **options):
    """Yields a server that serves."""
    core = ScriptedCore()
    core.send(info or make_info())
    async with starting_engine(core, **options) as engine:
        await engine.server.serve(core.pipe_of_server, tokenizer or TokenizerFiles())
        yield engine


def generate_request(*prompt, **fields):
    """Returns a request of the RPC; other fields are those of SamplingParams."""
    request = engine_pb2.GenerateRequest(prompt_token_ids=prompt or (1, 2, 3))
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            getattr(request.sampling_params, name).extend(value)
        else:
            setattr(request.sampling_params, name, value)
    return request


def submission(handle, request=None, **fields):
    """Returns a message that submits one request."""
    return engine_pb2.GenerateManyRequest(
        submissions=[
            engine_pb2.Submission(handle=handle, request=request or generate_request(), **fields)
        ]
    )


def admission(request, **fields):
    values = {"num_cached_tokens": 0, "seed": 7, "queue_seconds": 0.001, **fields}
    return Admission(request_id=request.request_id, **values)


def finish(request, reason=FinishReason.LENGTH, **fields):
    return Finish(request_id=request.request_id, reason=reason, **fields)


async def read(call):
    """Reads one message of a stream, within bounds."""
    async with asyncio.timeout(WAIT_SECONDS):
        return await call.read()


async def read_until(call, wanted):
    """Reads messages until one is wanted, and returns it."""
    while True:
        message = await read(call)
        assert message is not grpc.aio.EOF, "the stream ended early"
        if wanted(message):
            return message


async def status_of(call):
    """Waits for a call's end and returns its status as an ErrorStatus."""
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            if isinstance(call, grpc.aio.UnaryUnaryCall):
                await call
            else:
                while await call.read() is not grpc.aio.EOF:
                    pass
            await call.code()
            assert await call.code() != grpc.StatusCode.OK, "the call ended well"
        except grpc.aio.AioRpcError:
            pass
        end = grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )
    found = rpc_status.from_call(end)
    if found is None:
        return status.ErrorStatus(code=status.code_number(end.code()), message=end.details() or "")
    return status.unpack(found.code, found.message, found.details)


def failure_status(failure):
    """Returns the ErrorStatus of a RequestFailure."""
    return status.unpack(failure.error.code, failure.error.message, failure.error.details)
