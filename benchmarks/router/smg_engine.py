"""The lean engine behind the worker protocol of Shepherd Model Gateway.

    python -m benchmarks.router.smg_engine --port 9000 --tokenizer DIR --step-seconds 0.02

Serves `vllm.grpc.engine.VllmEngine` with the published stubs (`pip install smg-grpc-proto`), so
that the gateway meets the same steps and tokens as our router.
"""

import argparse
import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from benchmarks.router.lean_engine import LeanEngine, config_of, parser_of, until_signalled
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import channel
from tests.fakes.fake_core import Sink

_BASE: Any = vllm_engine_pb2_grpc.VllmEngineServicer
Message: TypeAlias = Any
"""The stubs come without types."""
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SmgEngine(_BASE):
    """Serves a lean engine, which gets its requests as from a router's stream.

    Args:
        engine: Entered by its owner.
        tokenizer: Folder that the gateway reads as well.
    """

    def __init__(self, engine: LeanEngine, tokenizer: Path) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._started = time.monotonic()
        self._handles = itertools.count(1)

    async def Generate(self, request: Message, context: Context) -> AsyncIterator[Message]:
        """Streams the tokens of one request, then all of them once more, as the protocol wants."""
        params = request.sampling_params
        submission = engine_pb2.Submission(
            handle=next(self._handles),
            request=engine_pb2.GenerateRequest(
                request_id=request.request_id,
                prompt_token_ids=request.tokenized.input_ids,
                sampling_params={"max_tokens": params.max_tokens, "ignore_eos": True},
            ),
        )
        sink = Sink()
        num_prompt_tokens = len(request.tokenized.input_ids)
        token_ids: list[int] = []
        try:
            self._engine._submit(sink, submission)
            while (message := await sink.take()) is not None:
                if message.failures:
                    await context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT, message.failures[0].error.message
                    )
                token_ids += message.token_ids
                if message.token_ids:
                    chunk = vllm_engine_pb2.GenerateStreamChunk(
                        token_ids=message.token_ids,
                        prompt_tokens=num_prompt_tokens,
                        completion_tokens=len(token_ids),
                    )
                    yield vllm_engine_pb2.GenerateResponse(chunk=chunk)
                if message.finishes:
                    complete = vllm_engine_pb2.GenerateComplete(
                        output_ids=token_ids,
                        finish_reason="length",
                        prompt_tokens=num_prompt_tokens,
                        completion_tokens=len(token_ids),
                    )
                    yield vllm_engine_pb2.GenerateResponse(complete=complete)
                    return
        finally:
            self._engine._close(sink)

    async def HealthCheck(self, request: Message, context: Context) -> Message:
        """Says that it is well."""
        return vllm_engine_pb2.HealthCheckResponse(healthy=True, message="")

    async def Abort(self, request: Message, context: Context) -> Message:
        """Does nothing: the end of a call is enough."""
        return vllm_engine_pb2.AbortResponse()

    async def GetModelInfo(self, request: Message, context: Context) -> Message:
        """Describes the model."""
        config = self._engine.config
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=str(self._tokenizer),
            tokenizer_path=str(self._tokenizer),
            served_model_name=config.model_name,
            is_generation=True,
            max_context_length=config.max_model_len,
            vocab_size=config.vocab_size,
            model_type="qwen3",
            architectures=["Qwen3ForCausalLM"],
            eos_token_ids=[1],
        )

    async def GetServerInfo(self, request: Message, context: Context) -> Message:
        """Describes the process."""
        return vllm_engine_pb2.GetServerInfoResponse(
            server_type="vllm-grpc",
            uptime_seconds=time.monotonic() - self._started,
            data_parallel_size=1,
            max_num_seqs=self._engine.config.max_num_seqs,
        )

    async def GetLoads(self, request: Message, context: Context) -> Message:
        """Tells how busy it is."""
        load = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=self._engine.num_running, num_waiting_reqs=self._engine.num_waiting
        )
        return vllm_engine_pb2.GetLoadsResponse(dp_rank_count=1, loads=[load])


async def _serve(arguments: argparse.Namespace) -> None:
    engine = LeanEngine(config_of(arguments), tokens_per_step=arguments.tokens_per_step)
    server = grpc.aio.server(options=channel.server_options())
    async with engine:
        servicer = SmgEngine(engine, arguments.tokenizer)
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(servicer, server)
        server.add_insecure_port(f"127.0.0.1:{arguments.port}")
        await server.start()
        await until_signalled()
        await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve(parser_of(__doc__).parse_args()))
