"""The router's end of one engine: a channel and a long-lived pair of streams.

GenerateMany carries all requests of this router, WatchCache the engine's prefix cache. `run`
keeps both up for ever. One message is one engine step, so that the cost per token is a slice and a
list append; tokens of a reader that is behind merge into one event.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire import block_hash, channel
from protos.wire.checked_channel import CheckedChannel
from protos.wire.handlers import RefusalLog
from protos.wire.status import ErrorStatus, Reason, error_status, unpack
from router.connection_loss import ConnectionLost, checked, describe, is_draining
from router.engine_convert import (
    status_of,
    to_cache_update,
    to_load,
    to_model,
    to_outcome,
    to_submission,
)
from router.errors import DOMAIN, EngineLost, EngineRefused, QueueFull, RequestError
from router.outbox import Outbox
from router.request_stream import RequestStream
from router.stall_detector import TICK_SECONDS, StallDetector
from router.tokenizer_transfer import read_files
from router.types import (
    CacheUpdate,
    EngineLoad,
    EngineState,
    ModelInfo,
    TokenRequest,
)

_logger = logging.getLogger(__name__)

_SERVICE = engine_pb2.DESCRIPTOR.services_by_name["EngineService"]
_MAX_HANDLE = 2**32 - 1

_DETAILS = {EngineState.SERVING: "", EngineState.DRAINING: "it finishes what it has"}

_STALLED = "stalled"
"""Why a connection was given up, for the metadata of the errors."""
_WATCH_FACTOR = 15
"""The longest wait before the cache is watched again, by that before a connection: 30 s."""
_MIN_QUARANTINE = 5.0
_MAX_QUARANTINE = 60.0
"""Seconds without requests for an engine that stalled; doubled if it stalls again at once."""

_GenerateManyCall = grpc.aio.StreamStreamCall[
    engine_pb2.GenerateManyRequest, engine_pb2.GenerateManyResponse
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Bounds and waits of an engine client; times are seconds.

    Attributes:
        call_timeout: For the model's description, for the first message of a stream and for each
            message of the tokenizer files.
        tokenizer_timeout: For the whole transfer of the tokenizer files.
        min_backoff: Wait before the first attempt to reconnect; doubles up to `max_backoff`. Each
            wait is drawn from half to all of it, so that routers do not return in step.
        max_backoff: The longest wait between attempts.
        max_open_requests: Requests under way on the engine; more are refused.
        max_buffered_tokens: Tokens of one request that wait for its reader; more fail it.
        refusals: Hears of messages of the engine that cannot be taken.
    """

    call_timeout: float = 5.0
    tokenizer_timeout: float = 60.0
    min_backoff: float = 0.1
    max_backoff: float = 2.0
    max_open_requests: int = 8192
    max_buffered_tokens: int = 16_384
    refusals: RefusalLog = field(default_factory=RefusalLog)


class EngineListener(Protocol):
    """What the owner of a client learns from it; called from the client's task."""

    def check_model(self, model: ModelInfo) -> str:
        """Returns why the engine may not serve, or an empty text."""

    def cache_position(self) -> tuple[int, int]:
        """Returns epoch and sequence number of the cache as it is known, (0, 0) for none."""

    async def cache_changed(self, update: CacheUpdate) -> bool:
        """Takes in a change; False asks for a new snapshot."""

    def state_changed(self) -> None:
        """The client has another state, or failed once more to leave the one it has."""

    def load_reported(self) -> None:
        """The engine sent its load."""


class EngineClient:
    """One engine as this router uses it.

    Attributes:
        address: "host:port" of the engine.
        state: SERVING only while GenerateMany is up and the engine takes requests.
        detail: Why the engine is not serving, for a person; empty when it is.
        model: What the engine said of its model when last connected.
        load: What the engine last said of its load.
        num_connections: How often GenerateMany came up.
    """

    def __init__(
        self, address: str, listener: EngineListener, settings: ClientSettings | None = None
    ) -> None:
        self.address = address
        self.state = EngineState.CONNECTING
        self.detail = "not connected yet"
        self.model: ModelInfo | None = None
        self.load = EngineLoad()
        self.num_connections = 0
        self._listener = listener
        self._settings = settings or ClientSettings()
        self._streams: dict[int, RequestStream] = {}
        self._outbox = Outbox()
        self._next_handle = 1
        self._stub: engine_pb2_grpc.EngineServiceStub | None = None
        self._stall_detector = StallDetector()
        self._quarantine = 0.0
        self._cause = ""
        self._is_exiting = False

    @property
    def num_open_requests(self) -> int:
        """Requests submitted and not ended."""
        return len(self._streams)

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands, whatever the engine says of its state."""
        return self._stub is not None

    @property
    def is_stalled(self) -> bool:
        """Whether the engine stalled and is left alone for now."""
        return self._cause == _STALLED

    async def run(self) -> None:
        """Keeps the engine connected until cancelled; never returns by itself.

        From then on it takes no more requests.
        """
        try:
            await self._keep_connected()
        finally:
            self.state, self.detail = EngineState.UNAVAILABLE, "its connection was closed"

    async def _keep_connected(self) -> None:
        backoff = self._settings.min_backoff
        async with asyncio.TaskGroup() as tasks:
            while True:
                num_connections = self.num_connections
                # A task of its own: a group that is failing, as a connection does when it is lost,
                # forgets a cancellation that comes meanwhile (before Python 3.13).
                await asyncio.wait([tasks.create_task(self._connect())])
                if self.num_connections > num_connections:
                    backoff = self._settings.min_backoff
                # An engine that stalled may accept a connection all the same, and requests.
                wait = max(backoff, self._quarantine if self.is_stalled else 0.0)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                backoff = min(2 * backoff, self._settings.max_backoff)

    def submit(self, request: TokenRequest) -> RequestStream:
        """Sends a request with the next message; returns its events at once.

        Raises:
            EngineLost: The engine is not connected (ENGINE_FAILED).
            QueueFull: Too many requests are under way on the engine.
            InvalidRequest: It is larger than an engine takes.
        """
        if self.state not in (EngineState.SERVING, EngineState.DRAINING):
            raise EngineLost(self._lost_status())
        bound = self._settings.max_open_requests
        if len(self._streams) >= bound:
            raise QueueFull(
                f"{bound} requests of this router are under way on engine {self.address}",
                {"engine": self.address, "max_open_requests": str(bound)},
                retry_after=1.0,
            )
        handle = self._free_handle()
        self._outbox.submit(to_submission(handle, request))
        stream = RequestStream(
            self.address, lambda: self._cancel(handle), self._settings.max_buffered_tokens
        )
        self._streams[handle] = stream
        return stream

    def end_requests(self, error: RequestError) -> None:
        """Ends every open request with an error, and cancels it on the engine."""
        for handle, stream in list(self._streams.items()):
            stream.end(error)
            self._cancel(handle)

    async def get_tokenizer(self, sha256: str) -> dict[str, bytes]:
        """Returns the engine's tokenizer files by name, which together have this digest.

        Raises:
            EngineLost: The engine is not connected.
            EngineRefused: It has none (NO_TOKENIZER), sent files that do not match what it
                announced (INTERNAL), or none for too long (ENGINE_FAILED).
        """
        if self._stub is None:
            raise EngineLost(self._lost_status())
        before = _num_cancellations()
        call = self._stub.GetTokenizer(
            engine_pb2.GetTokenizerRequest(), timeout=self._settings.tokenizer_timeout
        )
        try:
            return await read_files(
                self.address,
                call,
                expected_sha256=sha256,
                silence=self._settings.call_timeout,
            )
        except grpc.aio.AioRpcError as error:
            is_lost = error.code() is grpc.StatusCode.UNAVAILABLE
            raise (EngineLost if is_lost else EngineRefused)(status_of(error)) from error
        except asyncio.CancelledError as error:
            if _num_cancellations() > before:
                raise
            # Not this task was cancelled but the channel closed, which grpc reports alike.
            raise EngineLost(self._lost_status()) from error
        finally:
            call.cancel()

    async def _connect(self) -> None:
        """Serves one connection from its beginning to its loss."""
        self._cause = ""
        self._is_exiting = False
        try:
            await self._serve_once()
        except* (ConnectionLost, grpc.aio.AioRpcError) as group:
            self._is_exiting = is_draining(group)
            self._set_state(*describe(group))
        finally:
            self._fail_all()

    async def _serve_once(self) -> None:
        # A channel of its own per attempt: its waits are ours, not hidden in the transport.
        options = [*channel.client_options(), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as connection:
            bounded = CheckedChannel(connection, _SERVICE, self.address, self._settings.refusals)
            self._stub = engine_pb2_grpc.EngineServiceStub(bounded)  # type: ignore[no-untyped-call]
            try:
                self.model = await self._get_model(self._stub)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._generate(self._stub))
                    tasks.create_task(self._watch_cache(self._stub))
            finally:
                self._stub = None

    async def _get_model(self, stub: engine_pb2_grpc.EngineServiceStub) -> ModelInfo:
        response = await stub.GetModelInfo(
            engine_pb2.GetModelInfoRequest(), timeout=self._settings.call_timeout
        )
        model = to_model(checked(response))
        if model.block_hash_scheme != block_hash.SCHEME:
            refusal = (
                f'it hashes blocks by "{model.block_hash_scheme}"; '
                f'this router knows "{block_hash.SCHEME}"'
            )
        elif model.block_size < 1:
            refusal = f"its block size is {model.block_size} tokens"
        else:
            refusal = self._listener.check_model(model)
        if refusal:
            raise ConnectionLost(f"refused: {refusal}")
        return model

    async def _generate(self, stub: engine_pb2_grpc.EngineServiceStub) -> None:
        self._outbox = Outbox()
        call: _GenerateManyCall = stub.GenerateMany()
        try:
            responses = aiter(call)
            await self._receive_first(responses)
            _logger.info(
                "engine connected engine=%s model=%s state=%s",
                self.address,
                self.model and self.model.name,
                self.state.value,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(call))
                tasks.create_task(self._receive(responses))
                tasks.create_task(self._watch_steps())
        finally:
            call.cancel()

    async def _send(self, call: _GenerateManyCall) -> None:
        while True:
            await self._outbox.filled.wait()
            try:
                await call.write(self._outbox.take())
            except asyncio.InvalidStateError as error:
                raise ConnectionLost("its stream ended") from error

    async def _receive_first(
        self, responses: AsyncIterator[engine_pb2.GenerateManyResponse]
    ) -> None:
        seconds = self._settings.call_timeout
        try:
            async with asyncio.timeout(seconds):
                first = await anext(responses, None)
        except TimeoutError as error:
            raise ConnectionLost(f"its stream brought nothing within {seconds} s") from error
        if first is None or not first.HasField("load"):
            raise ConnectionLost("its stream did not begin with its load")
        self.num_connections += 1
        self._deliver(first)

    async def _receive(self, responses: AsyncIterator[engine_pb2.GenerateManyResponse]) -> None:
        async for message in responses:
            self._deliver(checked(message))
        raise ConnectionLost("it ended its stream")

    async def _watch_steps(self) -> None:
        """Ends the connection when the engine, though it has work, makes no step for too long."""
        detector = self._stall_detector = StallDetector()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            detector.tick(is_busy=bool(self._streams))
            if detector.is_stalled(self.model, self.load):
                self._quarantine = min(max(_MIN_QUARANTINE, 2 * self._quarantine), _MAX_QUARANTINE)
                self._cause = _STALLED
                raise ConnectionLost(
                    f"stalled: no step for {detector.silence:.1f} s "
                    f"with {len(self._streams)} requests under way"
                )

    def _deliver(self, message: engine_pb2.GenerateManyResponse) -> None:
        self._stall_detector.heard()
        streams = self._streams
        for admission in message.admissions:
            if stream := streams.get(admission.handle):
                stream.admit(admission.admission.cached_token_count, admission.admission.seed)
        self._deliver_tokens(message)
        for finish in message.finishes:
            if stream := streams.pop(finish.handle, None):
                stream.end(to_outcome(self.address, finish.finish))
        for failure in message.failures:
            if stream := streams.pop(failure.handle, None):
                error = failure.error
                stream.end(EngineRefused(unpack(error.code, error.message, error.details)))
        if message.HasField("load"):
            self._take_load(message.load)

    def _deliver_tokens(self, message: engine_pb2.GenerateManyResponse) -> None:
        streams = self._streams
        token_ids = list(message.token_ids)
        token_counts = message.token_counts
        if len(message.handles) != len(token_counts) or sum(token_counts) != len(token_ids):
            raise ConnectionLost("it sent a step whose token counts do not add up")
        start = 0
        for handle, count in zip(message.handles, token_counts, strict=True):
            end = start + count
            stream = streams.get(handle)
            if stream is not None:
                stream.add_tokens(token_ids[start:end])
            start = end
        if token_ids:
            self._quarantine = 0.0

    def _take_load(self, load: engine_pb2.EngineLoad) -> None:
        self.load = to_load(load)
        self._listener.load_reported()
        state = self.load.state
        if state is not self.state:
            self._set_state(state, _DETAILS.get(state, "it reports no known state"))

    async def _watch_cache(self, stub: engine_pb2_grpc.EngineServiceStub) -> None:
        loop = asyncio.get_running_loop()
        backoff = self._settings.min_backoff
        while True:
            started = loop.time()
            try:
                await self._watch_once(stub)
            except (ConnectionLost, grpc.aio.AioRpcError) as error:
                # The requests do not suffer: what is known of the cache is a hint.
                _logger.warning(
                    "cache watch lost engine=%s detail=%s", self.address, describe(error)[1]
                )
            longest = _WATCH_FACTOR * self._settings.max_backoff
            # That something came says nothing: it may be the same nonsense each time.
            if loop.time() - started > longest:
                backoff = self._settings.min_backoff
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, longest)

    async def _watch_once(self, stub: engine_pb2_grpc.EngineServiceStub) -> None:
        """Follows one WatchCache call to its end."""
        epoch, sequence_number = self._listener.cache_position()
        call = stub.WatchCache(
            engine_pb2.WatchCacheRequest(epoch=epoch, sequence_number=sequence_number)
        )
        try:
            async for message in call:
                if not await self._listener.cache_changed(to_cache_update(checked(message))):
                    _logger.warning(
                        "cache watch has a gap engine=%s epoch=%d sequence_number=%d held=%d",
                        self.address,
                        message.epoch,
                        message.sequence_number,
                        sequence_number,
                    )
                    break
                sequence_number = message.sequence_number
        finally:
            call.cancel()

    def _cancel(self, handle: int) -> None:
        self._streams.pop(handle, None)
        self._outbox.cancel(handle)

    def _free_handle(self) -> int:
        while True:
            handle = self._next_handle
            self._next_handle = handle % _MAX_HANDLE + 1
            if handle not in self._streams:
                return handle

    def _lost_status(self) -> ErrorStatus:
        return error_status(
            # One whose time of grace is over has failed nobody.
            Reason.DRAINING if self._is_exiting else Reason.ENGINE_FAILED,
            f"engine {self.address} is not connected: {self.detail}",
            domain=DOMAIN,
            metadata={"engine": self.address} | ({"cause": self._cause} if self._cause else {}),
        )

    def _fail_all(self) -> None:
        streams, self._streams = self._streams, {}
        error_of_all = self._lost_status()
        for stream in streams.values():
            stream.end(EngineLost(error_of_all))

    def _set_state(self, state: EngineState, detail: str) -> None:
        if (state, detail) != (self.state, self.detail):
            level = logging.INFO if state is EngineState.SERVING else logging.WARNING
            _logger.log(
                level, "engine engine=%s state=%s detail=%s", self.address, state.value, detail
            )
        self.state, self.detail = state, detail
        if state in (EngineState.CONNECTING, EngineState.UNAVAILABLE):
            self.load = EngineLoad()
        self._listener.state_changed()


def _num_cancellations() -> int:
    """Returns how often the running task was asked to end; only a rise says anything."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0
