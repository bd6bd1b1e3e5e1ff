"""The RPCs of vllm.grpc.engine.VllmEngine: check, call, map the error."""

import asyncio
import contextlib
import logging
import time
from typing import NoReturn

import grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_service.core.block_pool import MAX_DESCRIBED_TOKENS
from engine_service.core.types import StepOutput
from engine_service.errors import NoTokenizer, RequestError
from engine_service.server import convert
from engine_service.server.base_servicer import BaseServicer, trace_context
from engine_service.server.health import Health
from engine_service.server.metrics import EngineMetrics
from engine_service.server.replica import Replica
from engine_service.server.status import errors_to_status
from engine_service.server.vllm import description
from engine_service.server.vllm.answer import Answer
from engine_service.server.vllm.block_mirror import BlockMirror
from engine_service.server.vllm.calls import Call, OpenCalls
from engine_service.server.vllm.kv_events import KvEvents
from engine_service.server.vllm.message import Message
from engine_service.server.vllm.request import check_rank, to_requests
from engine_service.server.vllm.token_texts import TokenTexts
from engine_service.server.vllm.tokenizer_archive import TokenizerArchive
from servicekit.status import Context

_logger = logging.getLogger(__name__)


class VllmServicer(BaseServicer):
    """Serves calls from the replica, once it exists.

    Attributes:
        service: Describes the RPCs.
    """

    service = pb.DESCRIPTOR.services_by_name["VllmEngine"]

    def __init__(self, health: Health, metrics: EngineMetrics) -> None:
        super().__init__(health, metrics)
        self._calls = OpenCalls()
        self._archive = TokenizerArchive()
        self._model_info: Message = None
        self._mirror: BlockMirror | None = None
        self._texts = TokenTexts(None)
        self._created_at = time.monotonic()
        # Tokens, since the start.
        self._num_looked_up = 0
        self._num_hits = 0

    async def start(self, replica: Replica) -> None:
        """Serves calls from this replica; reads its tokenizer first, which takes seconds."""
        self._texts = await asyncio.to_thread(TokenTexts.read, replica)
        self._model_info = description.model_info(replica)
        self._mirror = BlockMirror(
            replica.client.describe_blocks, max_tokens_per_message=MAX_DESCRIBED_TOKENS
        )
        self.replica = replica

    def handle_step(self, output: StepOutput) -> None:
        """Takes in the changes of the cache and how well it serves."""
        self._num_looked_up += output.stats.num_prefix_query_tokens
        self._num_hits += output.stats.num_prefix_hit_tokens
        if self._mirror is not None and self.replica is not None:
            self._mirror.apply(output.cache_delta, self.replica.info.block_size)

    def fail(self, error: RequestError) -> None:
        """Ends the subscriptions to events."""
        if self._mirror is not None:
            self._mirror.fail(error)

    async def Generate(self, request: Message, context: Context) -> None:
        """Streams one or more continuations of one prompt."""
        async with errors_to_status(context, "VllmEngine/Generate"):
            with self._counted_refusals():
                self._health.check_ready()
                replica = self._loaded()
                name = convert.checked_name(request.request_id)
                requests = to_requests(request, replica.limits, replica.client.next_request_id)
                stop_texts = self._texts.stop_texts(request.sampling_params)
            num_tokens = replica.options.max_buffered_tokens
            with self._calls.opened(name, replica.client, num_tokens) as call:
                with self._counted_refusals():
                    for handle, core_request in enumerate(requests):
                        replica.client.submit(call.stream, handle, core_request, name=name)
                _logger.debug(
                    "request submitted request_id=%s num_prompt_tokens=%d num_samples=%d "
                    "traceparent=%s tracestate=%s",
                    name,
                    len(requests[0].prompt_token_ids),
                    len(requests),
                    *trace_context(context),
                )
                answer = Answer(
                    requests,
                    is_streamed=request.stream,
                    stop_texts=stop_texts,
                    cancel=call.cancel,
                )
                await _write_outputs(call, answer, context)

    async def Abort(self, request: Message, context: Context) -> Message:
        """Ends requests by their names; unknown and finished ones are ignored."""
        async with errors_to_status(context, "VllmEngine/Abort"):
            for name in request.request_ids:
                self._calls.abort(name)
            return pb.AbortResponse()

    async def HealthCheck(self, request: Message, context: Context) -> Message:
        """Says whether new requests are accepted."""
        return pb.HealthCheckResponse(
            healthy=self._health.is_ready, message=self._health.state.value
        )

    async def GetModelInfo(self, request: Message, context: Context) -> Message:
        """Describes the model."""
        async with errors_to_status(context, "VllmEngine/GetModelInfo"):
            self._loaded()
            return self._model_info

    async def GetServerInfo(self, request: Message, context: Context) -> Message:
        """Describes the engine."""
        async with errors_to_status(context, "VllmEngine/GetServerInfo"):
            uptime = time.monotonic() - self._created_at
            return description.server_info(self._loaded(), uptime)

    async def GetLoads(self, request: Message, context: Context) -> Message:
        """Tells the load of the engine's only data-parallel rank."""
        async with errors_to_status(context, "VllmEngine/GetLoads"):
            check_rank("dp_rank", request.dp_rank)
            hit_rate = self._num_hits / max(1, self._num_looked_up)
            return description.loads(self._loaded(), hit_rate)

    async def GetTokenizer(self, request: Message, context: Context) -> None:
        """Streams the tokenizer and chat template files as one archive."""
        async with errors_to_status(context, "VllmEngine/GetTokenizer"):
            replica = self._loaded()
            if not replica.tokenizer.files:
                raise NoTokenizer(
                    f"the folder of model {replica.info.model_name!r} has no tokenizer files",
                    {"model_name": replica.info.model_name},
                )
            for chunk in await self._archive.chunks(replica.tokenizer):
                await context.write(chunk)

    async def SubscribeKvEvents(self, request: Message, context: Context) -> None:
        """Streams the changes of the prefix cache, with the tokens of its blocks."""
        async with errors_to_status(context, "VllmEngine/SubscribeKvEvents"):
            self._loaded()
            assert self._mirror is not None, "start has set it"
            await context.send_initial_metadata(())
            events = KvEvents()
            changes = self._mirror.subscribe(request.start_sequence_number)
            with self._metrics.cache_watchers.track_inprogress():
                async with contextlib.aclosing(changes):
                    async for change in changes:
                        await context.write(events.batch(change))

    async def Embed(self, request: Message, context: Context) -> None:
        """Is not served: the engine generates only."""
        await _refuse(context, "Embed", "the engine serves models that generate text")

    async def FlushCache(self, request: Message, context: Context) -> None:
        """Is not served: blocks are reused when they are needed."""
        await _refuse(context, "FlushCache", "the engine reuses cached blocks by itself")

    async def StartProfile(self, request: Message, context: Context) -> None:
        """Is not served: the engine has no profiler."""
        await _refuse(context, "StartProfile", "the engine has no profiler")

    async def StopProfile(self, request: Message, context: Context) -> None:
        """Is not served: the engine has no profiler."""
        await _refuse(context, "StopProfile", "the engine has no profiler")


async def _refuse(context: Context, method: str, why: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served: {why}")
    raise AssertionError("abort raises")


async def _write_outputs(call: Call, answer: Answer, context: Context) -> None:
    while not answer.is_complete:
        batch = await call.stream.wait()
        for message in answer.messages(batch):
            await context.write(message)
        for _, error in batch.failures:
            if not answer.is_complete:
                raise error
        if call.is_aborted:
            for message in answer.abortion():
                await context.write(message)
