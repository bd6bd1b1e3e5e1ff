"""One GenerateMany stream: requests from a router, one message per step back."""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from engine_service.errors import DeadlineExceeded, EpochMismatch, InvalidRequest, RequestError
from engine_service.server import convert
from engine_service.server.health import Health
from engine_service.server.output_stream import OutputBatch
from engine_service.server.replica import Replica
from engine_service.server.status import as_request_error
from engine_service.server.submission_batch import RefusedSubmission, SubmissionBatch
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.message_parser import Malformed
from servicekit.handlers import MalformedMessage
from servicekit.status import Context

_SUBMISSIONS_PER_TURN = 32
"""Submissions handled before yielding to the event loop."""

_logger = logging.getLogger(__name__)


class GenerateManySession:
    """Reads a router's submissions and writes their outputs, in two separate tasks.

    The stream ends when the router has stopped submitting and no request is open, or with an error.
    Its unfinished requests are then cancelled.
    """

    def __init__(self, replica: Replica, health: Health) -> None:
        self._replica = replica
        self._health = health
        self._client = replica.client
        self._epoch = replica.cache_log.epoch
        self._stream = replica.client.open_stream(replica.options.max_stream_buffered_tokens)
        self._is_read_up = False

    async def run(
        self, requests: AsyncIterator[SubmissionBatch], context: Context
    ) -> RequestError | None:
        """Serves the stream to its end; returns the error to end it with, if any."""
        load_meter = self._replica.load_meter
        load_meter.subscribe(self._stream.wake)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(requests))
                try:
                    await self._write(context)
                except RequestError as error:
                    return error
                except grpc.aio.InternalError:
                    # The router disconnected in the middle of a message.
                    _logger.debug("stream closed by the router during a write")
                finally:
                    reading.cancel()
        finally:
            load_meter.unsubscribe(self._stream.wake)
            self._client.close_stream(self._stream)
        return None

    async def _read(self, batches: AsyncIterator[SubmissionBatch]) -> None:
        try:
            async for batch in batches:
                if batch.epoch not in (0, self._epoch):
                    self._stream.fail(self._epoch_mismatch(batch.epoch), keep_outputs=False)
                    return
                for handle in batch.cancelled_handles:
                    self._client.cancel(self._stream, handle)
                for number, submission in enumerate(batch.submissions):
                    if self._stream.has_failed:
                        # A router that was cut off for not reading could fill the memory by
                        # submitting more. Stop reading, so that flow control stops it.
                        return
                    self._submit(submission)
                    if number % _SUBMISSIONS_PER_TURN == _SUBMISSIONS_PER_TURN - 1:
                        await asyncio.sleep(0)
        except MalformedMessage as error:
            self._stream.fail(_refusal(error.malformed))
            return
        self._is_read_up = True
        self._stream.wake()

    def _epoch_mismatch(self, epoch: int) -> EpochMismatch:
        return EpochMismatch(
            f"the stream is for an engine of epoch {epoch}, but the epoch of this engine is "
            f"{self._epoch}: it is another engine, or has restarted",
            {"epoch": str(epoch), "engine_epoch": str(self._epoch)},
        )

    async def _write(self, context: Context) -> None:
        load_meter = self._replica.load_meter
        told = load_meter.load
        (first,) = convert.to_generate_many_responses(OutputBatch(), told)
        first.epoch = self._epoch
        first.model_fingerprint = self._replica.info.model_fingerprint
        await context.write(first)
        batch = OutputBatch()
        while True:
            if batch or load_meter.load is not told:
                told = load_meter.load
                for response in convert.to_generate_many_responses(batch, told):
                    await context.write(response)
            if self._is_read_up and not self._stream.has_more:
                return
            batch = await self._stream.wait()

    def _submit(self, submission: engine_pb2.Submission | RefusedSubmission) -> None:
        handle = submission.handle
        try:
            self._health.check_ready()
            if isinstance(submission, RefusedSubmission):
                raise _refusal(submission.malformed)
            name = convert.request_name(submission.request)
            timeout = convert.timeout_seconds(submission)
            if timeout is not None and timeout <= 0:
                raise DeadlineExceeded(
                    f"the timeout of request {name!r} is {timeout:g} s, must be above 0",
                    {"request_id": name, "timeout_seconds": f"{timeout:g}"},
                )
            request = convert.to_request(
                submission.request,
                self._client.next_request_id(),
                self._replica.limits,
                self._replica.info.default_sampling_params,
            )
            self._client.submit(self._stream, handle, request, name=name, timeout=timeout)
            _logger.debug(
                "request submitted request_id=%s handle=%d num_prompt_tokens=%d traceparent=%s "
                "tracestate=%s",
                name,
                handle,
                len(request.prompt_token_ids),
                submission.traceparent,
                submission.tracestate,
            )
        except Exception as error:
            self._client.refuse(self._stream, handle, as_request_error(error))


def _refusal(malformed: Malformed) -> InvalidRequest:
    return InvalidRequest(malformed.text, malformed.metadata, reason=malformed.reason)
