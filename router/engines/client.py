"""The router's connection to one engine: a channel and two long-lived streams.

GenerateMany carries all requests of this router, WatchCache the changes of the engine's prefix
cache. `run` keeps both open and trusts nothing that it receives: any fault with one engine, even a
bug in this router, makes only that engine unavailable.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire.status import ErrorStatus, Reason, cut, error_status
from router.engines.cache_watch import CacheListener, CacheWatch
from router.engines.channels import EngineChannels
from router.engines.connection_loss import (
    ConnectionLost,
    Fault,
    checked,
    ends_task,
    forget_frames,
    loss_of,
)
from router.engines.convert import status_of, to_load, to_model
from router.engines.lifecycle import Lifecycle, Stage
from router.engines.model_contract import model_fault
from router.engines.open_requests import OpenRequests
from router.engines.quarantine import Quarantine
from router.engines.request_stream import RequestStream
from router.engines.stall_detector import TICK_SECONDS, StallDetector
from router.engines.tokenizer_transfer import read_files
from router.errors import DOMAIN, EngineError, EngineLost, RequestError
from router.types.engine_events import TokenRequest
from router.types.engine_state import ModelInfo
from servicekit.checked_channel import CheckedChannel
from servicekit.handlers import RefusalLog

_logger = logging.getLogger(__name__)

_SERVICE = engine_pb2.DESCRIPTOR.services_by_name["EngineService"]
_SERVICE_NAME = _SERVICE.full_name

_WATCH_FACTOR = 15
"""The longest wait before watching the cache again, in units of `max_backoff`: 30 s."""

_GenerateManyCall = grpc.aio.StreamStreamCall[
    engine_pb2.GenerateManyRequest, engine_pb2.GenerateManyResponse
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Bounds and waits of an engine client; times are in seconds.

    Attributes:
        call_timeout: For the model information, the first message of a stream and each message of
            the tokenizer files.
        tokenizer_timeout: For the whole transfer of the tokenizer files.
        min_backoff: Wait before the first attempt to reconnect; doubles up to `max_backoff`. Each
            wait is a random half to all of it, so that routers do not reconnect in step.
        max_backoff: The longest wait between attempts.
        max_open_requests: Requests in progress on the engine; more are refused.
        max_buffered_tokens: Unread tokens of one request; if more are unread when further ones
            come, it fails.
        refusals: Records messages of the engine that were refused.
        channels: How it connects.
    """

    call_timeout: float = 5.0
    tokenizer_timeout: float = 60.0
    min_backoff: float = 0.1
    max_backoff: float = 2.0
    max_open_requests: int = 8192
    max_buffered_tokens: int = 16_384
    refusals: RefusalLog = field(default_factory=RefusalLog)
    channels: EngineChannels = field(default_factory=EngineChannels)


class EngineListener(CacheListener, Protocol):
    """What a client asks and tells the fleet's member, which is above this layer.

    All calls are made from the client's task.
    """

    def check_model(self, model: ModelInfo) -> str:
        """Returns why the engine may not serve, or an empty string."""

    def load_reported(self) -> None:
        """The engine sent its load."""


@dataclass(frozen=True, slots=True)
class _Connection:
    """An open stream to the engine: how to call it, and the requests on it."""

    stub: engine_pb2_grpc.EngineServiceStub
    requests: OpenRequests


class EngineClient:
    """The connection to one engine, opened again whenever it ends.

    Args:
        life: The engine's life; the client says in it what happens to the connection.
        listener: Whom it asks and tells.
        settings: Bounds and waits.

    Attributes:
        address: "host:port" of the engine.
        num_connections: How often GenerateMany was opened.
        num_faults: Faults of the engine, by kind.
    """

    def __init__(
        self, life: Lifecycle, listener: EngineListener, settings: ClientSettings | None = None
    ) -> None:
        self.address = life.address
        self.num_connections = 0
        self.num_faults: Counter[Fault] = Counter()
        self._life = life
        self._listener = listener
        self._settings = settings or ClientSettings()
        self._connection: _Connection | None = None
        self._stall_detector = StallDetector()
        self._quarantine = Quarantine()
        self._cache_watch = CacheWatch(
            self.address,
            listener,
            self.num_faults,
            min_backoff=self._settings.min_backoff,
            max_backoff=_WATCH_FACTOR * self._settings.max_backoff,
        )

    @property
    def num_open_requests(self) -> int:
        """Requests submitted and not ended."""
        return 0 if self._connection is None else len(self._connection.requests)

    async def run(self) -> None:
        """Keeps the engine connected until its life is closed, or this task is cancelled.

        After that, it accepts no more requests.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                connecting = tasks.create_task(self._keep_connected())
                await self._life.closed.wait()
                connecting.cancel()
        finally:
            self._life.close()

    async def _keep_connected(self) -> None:
        backoff = self._settings.min_backoff
        async with asyncio.TaskGroup() as tasks:
            while True:
                num_connections = self.num_connections
                # A separate task: a group that is failing, as on a lost connection, drops a
                # cancellation that arrives meanwhile (before Python 3.13).
                connection = tasks.create_task(self._connect())
                await asyncio.wait([connection])
                if self.num_connections > num_connections:
                    backoff = self._settings.min_backoff
                # An engine that stalled may still accept a connection and requests.
                wait = max(backoff, connection.result())
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                backoff = min(2 * backoff, self._settings.max_backoff)

    def submit(self, request: TokenRequest) -> RequestStream:
        """Sends a request with the next message; returns its event stream at once.

        Raises:
            EngineLost: The engine is not connected (ENGINE_FAILED).
            QueueFull: Too many requests are in progress on the engine.
            InvalidRequest: The request is larger than an engine accepts.
        """
        if self._connection is None:
            raise EngineLost(self._lost_status())
        return self._connection.requests.submit(request)

    def end_requests(self, error: RequestError) -> None:
        """Ends every open request with an error, and cancels it on the engine."""
        if self._connection is not None:
            self._connection.requests.end_all(error)

    async def get_tokenizer(self, sha256: str) -> dict[str, bytes]:
        """Returns the engine's tokenizer files by name; together they have the given digest.

        Raises:
            EngineLost: The engine is not connected.
            EngineError: It has none (NO_TOKENIZER), sent files other than announced (INTERNAL), or
                sent nothing for too long (ENGINE_FAILED).
        """
        if self._connection is None:
            raise EngineLost(self._lost_status())
        before = _num_cancellations()
        call = self._connection.stub.GetTokenizer(
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
            raise (EngineLost if is_lost else EngineError)(status_of(error)) from error
        except asyncio.CancelledError as error:
            if _num_cancellations() > before:
                raise
            # The channel was closed, not this task cancelled; grpc reports both alike.
            raise EngineLost(self._lost_status()) from error
        finally:
            call.cancel()

    async def _connect(self) -> float:
        """Serves one connection until it is lost; raises only when this task must end.

        Returns:
            Seconds for which the engine must be left alone; 0 unless it misbehaved.
        """
        try:
            await self._serve_once()
        # Also non-Exceptions: a panic of a Rust library is a BaseException.
        except BaseException as error:
            if ends_task(error):
                raise
            return self._lose(error)
        finally:
            self._fail_all()
        return 0.0

    def _lose(self, error: BaseException) -> float:
        loss = loss_of(error)
        if loss.fault is not None:
            self.num_faults[loss.fault] += 1
        if loss.fault is Fault.UNEXPECTED:
            _logger.debug("engine fault caught engine=%s", self.address, exc_info=error)
        forget_frames(error)
        explained = cut(self._settings.channels.explained(loss.detail))
        self._life.lose(replace(loss, detail=explained))
        return self._quarantine.begin() if loss.needs_quarantine else 0.0

    async def _serve_once(self) -> None:
        async with self._settings.channels.open(self.address) as connection:
            if self._life.stage is Stage.QUARANTINED:
                await self._probe(connection)
                self._quarantine.end()
                self._life.recover()
            bounded = CheckedChannel(connection, _SERVICE, self.address, self._settings.refusals)
            stub = engine_pb2_grpc.EngineServiceStub(bounded)  # type: ignore[no-untyped-call]
            model = await self._get_model(stub)
            self._life.accept(model)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._generate(stub, model))
                tasks.create_task(self._cache_watch.run(stub, model))

    async def _probe(self, connection: grpc.aio.Channel) -> None:
        """Asks a quarantined engine for its health, rather than risking a request."""
        stub = health_pb2_grpc.HealthStub(connection)
        try:
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service=_SERVICE_NAME),
                timeout=self._settings.call_timeout,
            )
        except grpc.aio.AioRpcError as error:
            said = status_of(error).message
        else:
            status = checked(answer).status
            if status == health_pb2.HealthCheckResponse.SERVING:
                return
            names = health_pb2.HealthCheckResponse.ServingStatus
            said = names.Name(status) if status in names.values() else str(status)
        raise ConnectionLost(f"it is quarantined, and its health check says {said}")

    async def _get_model(self, stub: engine_pb2_grpc.EngineServiceStub) -> ModelInfo:
        response = checked(
            await stub.GetModelInfo(
                engine_pb2.GetModelInfoRequest(), timeout=self._settings.call_timeout
            )
        )
        if refusal := model_fault(response):
            raise ConnectionLost(f"refused: {refusal}")
        model = to_model(response)
        if refusal := self._listener.check_model(model):
            raise ConnectionLost(f"refused: {refusal}")
        return model

    async def _generate(self, stub: engine_pb2_grpc.EngineServiceStub, model: ModelInfo) -> None:
        call: _GenerateManyCall = stub.GenerateMany()
        try:
            first = await self._open(call, model)
            requests = OpenRequests(
                self.address,
                model,
                max_open=self._settings.max_open_requests,
                max_buffered_tokens=self._settings.max_buffered_tokens,
                on_idle=self._life.idle,
            )
            self._connection = _Connection(stub, requests)
            self.num_connections += 1
            self._deliver(requests, first)
            _logger.info(
                "engine connected engine=%s model=%s state=%s",
                self.address,
                model.name,
                self._life.state.value,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(call, requests))
                tasks.create_task(self._receive(call, requests))
                tasks.create_task(self._watch_steps(requests, model))
        finally:
            call.cancel()

    async def _open(
        self, call: _GenerateManyCall, model: ModelInfo
    ) -> engine_pb2.GenerateManyResponse:
        """Opens a stream and returns its first message, after both ends agree on the engine.

        The channel reconnects by itself, and its address may then lead to another engine.
        """
        seconds = self._settings.call_timeout
        try:
            async with asyncio.timeout(seconds):
                with contextlib.suppress(asyncio.InvalidStateError):
                    await call.write(engine_pb2.GenerateManyRequest(epoch=model.epoch))
                first = await _read(call)
        except TimeoutError as error:
            raise ConnectionLost(f"its stream sent nothing within {seconds} s") from error
        if first is None or not first.HasField("load"):
            raise ConnectionLost("the first message of its stream has no load")
        if (first.epoch, first.model_fingerprint) != (model.epoch, model.fingerprint):
            raise ConnectionLost(
                f"its stream has epoch {first.epoch} and fingerprint "
                f'"{first.model_fingerprint:.64}", its model epoch {model.epoch} and '
                f'fingerprint "{model.fingerprint}": it is another engine, or older than this '
                "router",
                Fault.MISMATCH,
            )
        return first

    async def _send(self, call: _GenerateManyCall, requests: OpenRequests) -> None:
        while True:
            await requests.outbox.filled.wait()
            try:
                await call.write(requests.outbox.take())
            except asyncio.InvalidStateError as error:
                raise ConnectionLost("its stream ended") from error

    async def _receive(self, call: _GenerateManyCall, requests: OpenRequests) -> None:
        while (message := await _read(call)) is not None:
            self._deliver(requests, message)
            # Otherwise it would stay in memory, however large, until the next one arrives.
            del message
        raise ConnectionLost("it ended its stream")

    async def _watch_steps(self, requests: OpenRequests, model: ModelInfo) -> None:
        """Ends the connection if the engine has work but makes no step for too long."""
        detector = self._stall_detector = StallDetector()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            detector.tick(is_busy=bool(requests))
            if detector.is_stalled(model, self._life.load):
                raise ConnectionLost(
                    f"stalled: no step for {detector.silence:.1f} s "
                    f"with {len(requests)} requests in progress",
                    Fault.STALLED,
                )

    def _deliver(self, requests: OpenRequests, message: engine_pb2.GenerateManyResponse) -> None:
        self._stall_detector.heard()
        requests.deliver(message)
        if message.HasField("load"):
            self._listener.load_reported()
            self._life.report(to_load(message.load))

    def _lost_status(self) -> ErrorStatus:
        loss = self._life.loss
        return error_status(
            # An engine that exits after its grace period has not failed.
            Reason.DRAINING if loss.is_draining else Reason.ENGINE_FAILED,
            f"engine {self.address} is not connected: {loss.detail}",
            domain=DOMAIN,
            metadata={"engine": self.address} | ({"cause": loss.fault.value} if loss.fault else {}),
        )

    def _fail_all(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.requests.lose_all(self._lost_status())


async def _read(call: _GenerateManyCall) -> engine_pb2.GenerateManyResponse | None:
    """Returns the next message of a stream, or None at its end."""
    message = await call.read()
    return None if message is grpc.aio.EOF else checked(message)  # type: ignore[return-value]


def _num_cancellations() -> int:
    """Returns how many cancellations of the running task are pending; only a rise matters."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0
