"""A client of the vLLM service, before an engine whose core the test speaks for."""

import asyncio
import contextlib
import multiprocessing
import threading

from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc

from engine_service.core.engine_core import serve
from engine_service.server.tokenizer_files import TokenizerFiles
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.core.helpers import make_core
from tests.engine_service.server.harness import WAIT_SECONDS, running_engine, starting_engine


@contextlib.asynccontextmanager
async def running_vllm_engine(info=None, tokenizer=None, **options):
    """Yields an engine that serves, and the stub of its vLLM service."""
    async with running_engine(info, tokenizer, vllm_grpc=True, **options) as engine:
        yield engine, vllm_engine_pb2_grpc.VllmEngineStub(engine.channel)


@contextlib.asynccontextmanager
async def whole_vllm_engine():
    """The same with the product's core, in a thread, over an executor without a model."""
    pipe_of_server, pipe_of_core = multiprocessing.Pipe()
    core = make_core()

    def run():
        pipe_of_core.send(make_info())
        serve(core, pipe_of_core)
        pipe_of_core.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        async with starting_vllm_engine() as (engine, stub):
            await engine.server.serve(pipe_of_server, TokenizerFiles())
            yield engine, stub
    finally:
        await asyncio.to_thread(thread.join, WAIT_SECONDS)
        assert not thread.is_alive(), "the core outlives its server"


@contextlib.asynccontextmanager
async def starting_vllm_engine():
    """The same before its model is loaded."""
    async with starting_engine(vllm_grpc=True) as engine:
        yield engine, vllm_engine_pb2_grpc.VllmEngineStub(engine.channel)


def request(*prompt, name="", stream=True, **params):
    """Returns a request; other fields are those of its sampling parameters."""
    return pb.GenerateRequest(
        request_id=name,
        stream=stream,
        tokenized=pb.TokenizedInput(input_ids=prompt or (1, 2, 3), original_text="as text"),
        sampling_params=pb.SamplingParams(**params),
    )
