"""The RPCs of EngineService: check, call, map the error."""

import logging
from collections.abc import AsyncIterator

from engine_service.core.types import Request
from engine_service.errors import NoTokenizer, SlowReader
from engine_service.server import convert
from engine_service.server.base_servicer import BaseServicer, trace_context
from engine_service.server.output_stream import OutputStream
from engine_service.server.session import GenerateManySession
from engine_service.server.status import errors_to_status
from engine_service.server.submission_batch import SubmissionBatch
from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from servicekit.status import Context
from servicekit.version import software_version

_HANDLE = 0
"""Number of the one request of a Generate call."""

_logger = logging.getLogger(__name__)


class EngineServicer(BaseServicer, engine_pb2_grpc.EngineServiceServicer):
    """Serves calls from the replica, once it exists."""

    async def Generate(self, request: engine_pb2.GenerateRequest, context: Context) -> None:
        """Streams the continuation of one prompt."""
        async with errors_to_status(context, "Generate"):
            with self._counted_refusals():
                self._health.check_ready()
                replica = self._loaded()
                client = replica.client
                name = convert.request_name(request)
                core_request = convert.to_request(
                    request,
                    client.next_request_id(),
                    replica.limits,
                    replica.info.default_sampling_params,
                )
            stream = client.open_stream(replica.options.max_buffered_tokens)
            try:
                with self._counted_refusals():
                    client.submit(stream, _HANDLE, core_request, name=name)
                _log_submission(name, core_request, context)
                await _write_outputs(stream, context)
            finally:
                client.close_stream(stream)

    async def GenerateMany(
        self, request_iterator: AsyncIterator[SubmissionBatch], context: Context
    ) -> None:
        """Carries all requests of one router."""
        async with errors_to_status(context, "GenerateMany"):
            self._health.check_ready()
            await context.send_initial_metadata(())
            session = GenerateManySession(self._loaded(), self._health)
            with self._metrics.streams.track_inprogress():
                error = await session.run(request_iterator, context)
            if error is not None:
                raise error

    async def WatchCache(self, request: engine_pb2.WatchCacheRequest, context: Context) -> None:
        """Streams the changes of the prefix cache."""
        async with errors_to_status(context, "WatchCache"):
            cache_log = self._loaded().cache_log
            await context.send_initial_metadata(())
            watch = cache_log.watch(request.epoch, request.sequence_number)
            with self._metrics.cache_watchers.track_inprogress():
                try:
                    async for change in watch:
                        await context.write(
                            convert.to_watch_cache_response(cache_log.epoch, change)
                        )
                except SlowReader:
                    self._metrics.count_slow_reader()
                    raise

    async def GetModelInfo(
        self, request: engine_pb2.GetModelInfoRequest, context: Context
    ) -> engine_pb2.GetModelInfoResponse:
        """Describes the model, its limits and how its blocks are hashed."""
        async with errors_to_status(context, "GetModelInfo"):
            replica = self._loaded()
            return convert.to_model_info_response(
                replica.info,
                epoch=replica.cache_log.epoch,
                tokenizer_sha256=replica.tokenizer.sha256,
                engine_version=software_version(),
            )

    async def GetTokenizer(self, request: engine_pb2.GetTokenizerRequest, context: Context) -> None:
        """Streams the tokenizer and chat template files."""
        async with errors_to_status(context, "GetTokenizer"):
            replica = self._loaded()
            if not replica.tokenizer.files:
                raise NoTokenizer(
                    f"the folder of model {replica.info.model_name!r} has no tokenizer files",
                    {"model_name": replica.info.model_name},
                )
            for response in convert.to_tokenizer_responses(replica.tokenizer):
                await context.write(response)


def _log_submission(name: str, request: Request, context: Context) -> None:
    _logger.debug(
        "request submitted request_id=%s num_prompt_tokens=%d traceparent=%s tracestate=%s",
        name,
        len(request.prompt_token_ids),
        *trace_context(context),
    )


async def _write_outputs(stream: OutputStream, context: Context) -> None:
    while True:
        batch = await stream.wait()
        if batch.handles or batch.admissions or batch.finishes or batch.prompt_logprobs:
            for response in convert.to_generate_responses(batch):
                await context.write(response)
        for _, error in batch.failures:
            raise error
        if batch.finishes:
            return
