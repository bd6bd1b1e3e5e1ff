"""A client of the vLLM service, before an engine whose core the test speaks for."""

import contextlib

from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc

from tests.engine_service.server.harness import running_engine, starting_engine


@contextlib.asynccontextmanager
async def running_vllm_engine(info=None, tokenizer=None, **options):
    """Yields an engine that serves, and the stub of its vLLM service."""
    async with running_engine(info, tokenizer, vllm_grpc=True, **options) as engine:
        yield engine, vllm_engine_pb2_grpc.VllmEngineStub(engine.channel)


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
