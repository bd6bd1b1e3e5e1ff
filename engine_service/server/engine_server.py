"""The server's lifecycle: open ports, wait for the model, serve requests, drain."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Self

import grpc

from engine_service.config import ServerOptions
from engine_service.core.limits import Limits
from engine_service.core.types import EngineInfo, StepOutput
from engine_service.errors import (
    DOMAIN,
    Draining,
    RequestError,
    StartupError,
    core_frozen,
    core_lost,
)
from engine_service.grammar.check_process import CheckSetup
from engine_service.grammar.checker import GrammarChecker
from engine_service.grammar.tokenizer import FILE_NAME as TOKENIZER_FILE
from engine_service.server.cache_log import CacheLog
from engine_service.server.core_client import CoreClient
from engine_service.server.core_watch import TICK_SECONDS, CoreWatch
from engine_service.server.health import Health, State
from engine_service.server.load_meter import LoadMeter
from engine_service.server.metrics import EngineMetrics
from engine_service.server.replica import Replica
from engine_service.server.servicer import EngineServicer
from engine_service.server.submission_batch import SubmissionBatchParser
from engine_service.server.tokenizer_files import TokenizerFiles
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.channel import ENGINE_REQUEST_BYTES, server_options
from protos.wire.limits import MAX_PROMPT_BYTES
from servicekit.grpc_tls import ClientNames, port_adder
from servicekit.handlers import Handlers, RefusalLog
from servicekit.http_server import HttpServer
from servicekit.listening import add_grpc_port, max_grpc_connections
from servicekit.operations import operations_handlers
from servicekit.tls import operations_tls, server_tls

if TYPE_CHECKING:
    from engine_service.server.vllm.servicer import VllmServicer

_FAREWELL_SECONDS = 2.0
"""Time for calls to send their final status before they are closed."""

_logger = logging.getLogger(__name__)


class EngineServer:
    """Serves one core over gRPC, and its probes and metrics over HTTP.

    Args:
        options: The settings.
        model_name: The name of the model, which its metrics carry.

    Attributes:
        port: The gRPC port, once listening.
        operations_port: The HTTP port, once listening.
    """

    def __init__(self, options: ServerOptions, model_name: str) -> None:
        self._options = options
        self._health = Health()
        self._metrics = EngineMetrics(model_name, has_vllm_names=options.vllm_metrics)
        self._cache_log = CacheLog(options.max_cache_history_hashes)
        self._load_meter = LoadMeter()
        self._watch = CoreWatch(options.core_silence_seconds)
        self._max_step_tokens = 0
        self._servicer = EngineServicer(self._health, self._metrics)
        self._tls = server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
        tls = operations_tls(options.operations_tls_cert, options.operations_tls_key)
        self._metrics.certificates.sources = [one for one in (self._tls, tls) if one is not None]
        self._operations = HttpServer(
            operations_handlers(self._metrics.registry, self._health), tls
        )
        self._clients = _client_names(options)
        self._vllm = _vllm_servicer(self._health, self._metrics) if options.vllm_grpc else None
        max_text_bytes = MAX_PROMPT_BYTES if options.vllm_grpc else 0
        self._server = grpc.aio.server(
            options=server_options(
                ENGINE_REQUEST_BYTES + max_text_bytes,
                max_connections=max_grpc_connections(options.host),
            )
        )
        self._client: CoreClient | None = None
        self._grammars: GrammarChecker | None = None
        self.port = 0
        self.operations_port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, options: ServerOptions, model_name: str) -> AsyncIterator[Self]:
        """Listens on both ports, live but not ready, and closes everything on exit.

        Raises:
            StartupError: A port is in use, or a certificate cannot be used.
        """
        server = cls(options, model_name)
        try:
            await server._listen()
            yield server
        finally:
            await server._close()

    @property
    def is_ready(self) -> bool:
        """Whether new requests are accepted."""
        return self._health.is_ready

    @property
    def is_core_lost(self) -> bool:
        """Whether the core ended unexpectedly."""
        return self._client is not None and self._client.is_lost

    @property
    def is_core_frozen(self) -> bool:
        """Whether the core sends no heartbeat and its open requests were ended with an error."""
        return self._health.state is State.FROZEN

    @property
    def core_silence(self) -> float:
        """Seconds since the core's last heartbeat."""
        return self._watch.silence

    async def serve(self, connection: Connection, tokenizer: TokenizerFiles) -> EngineInfo:
        """Waits for the core at the other end to be ready, then accepts requests.

        Raises:
            StartupError: The core reported that it cannot serve.
            EngineFailed: The core ended without a report.
        """
        client = CoreClient(
            connection,
            max_waiting_requests=self._options.max_waiting_requests,
            observer=self._metrics,
            on_step=self._handle_step,
        )
        self._client = client
        info = await client.start()
        self._max_step_tokens = info.max_num_batched_tokens
        self._load_meter.start(info)
        self._metrics.set_info(info)
        self._start_grammar_check(client, info, tokenizer)
        replica = Replica(
            info=info,
            limits=Limits.from_info(info),
            client=client,
            cache_log=self._cache_log,
            load_meter=self._load_meter,
            tokenizer=tokenizer,
            options=self._options,
        )
        self._servicer.replica = replica
        if self._vllm is not None:
            await self._vllm.start(replica)
        await self._enter(State.SERVING)
        return info

    async def wait_core_lost(self) -> None:
        """Waits until the core is gone or frozen for too long, then refuses and ends everything.

        While the core is frozen, its requests end and new ones are refused. Once it sends a
        heartbeat again, the engine serves as before.
        """
        assert self._client is not None, "serve comes first"
        await self._watch_core(self._client)
        if self._client.is_lost:
            await self._enter(State.FAILED)
            self._fail_watches(core_lost())

    async def drain(self) -> None:
        """Refuses new requests, lets running ones finish in the grace period, ends the rest.

        If the core freezes in the meantime, they end at once.
        """
        assert self._client is not None, "serve comes first"
        _logger.info(
            "draining num_open_requests=%d grace_seconds=%g",
            self._client.num_open,
            self._options.drain_grace_seconds,
        )
        await self._enter(State.DRAINING)
        self._load_meter.drain()
        try:
            async with (
                asyncio.timeout(self._options.drain_grace_seconds),
                asyncio.TaskGroup() as tasks,
            ):
                watching = tasks.create_task(self._watch_core(self._client))
                await self._client.wait_idle()
                watching.cancel()
        except TimeoutError:
            _logger.warning("drain grace over num_open_requests=%d", self._client.num_open)
        exiting = Draining("the engine is exiting")
        self._client.fail_all(exiting)
        self._fail_watches(exiting)

    async def _listen(self) -> None:
        handlers = Handlers(
            self._server,
            domain=DOMAIN,
            refusals=RefusalLog(self._metrics.count_malformed_message),
            clients=self._clients,
        )
        service = engine_pb2.DESCRIPTOR.services_by_name["EngineService"]
        handlers.add(service, self._servicer, {"GenerateMany": SubmissionBatchParser()})
        if self._vllm is not None:
            handlers.add(self._vllm.service, self._vllm)
            self._health.add_service(self._vllm.service.full_name)
        handlers.add_health(self._health.servicer)
        handlers.add_reflection()
        host, port = self._options.host, self._options.port
        self.port = add_grpc_port(port_adder(self._server, self._tls), host, port)
        self.operations_port = await self._operations.start(host, self._options.operations_port)
        await self._enter(State.STARTING)
        await self._server.start()

    def _start_grammar_check(
        self, client: CoreClient, info: EngineInfo, tokenizer: TokenizerFiles
    ) -> None:
        """Lets requests with a grammar wait until it is checked, if the core takes any."""
        tokenizer_json = tokenizer.content(TOKENIZER_FILE)
        if "grammar" not in info.supported_params or tokenizer_json is None:
            return
        setup = CheckSetup(
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
            cpu_seconds=self._options.grammar_seconds,
            memory_bytes=self._options.grammar_memory_bytes,
        )
        self._grammars = GrammarChecker(setup, tokenizer_json, self._metrics)
        self._grammars.start()
        client.use_grammar_check(self._grammars)

    async def _close(self) -> None:
        await self._server.stop(_FAREWELL_SECONDS)
        if self._client is not None:
            self._client.close()
            await asyncio.to_thread(self._client.join, _FAREWELL_SECONDS)
        if self._grammars is not None:
            self._grammars.close()
            await asyncio.to_thread(self._grammars.join, _FAREWELL_SECONDS)
        self._load_meter.close()
        await self._operations.stop()

    async def _enter(self, state: State) -> None:
        await self._health.enter(state)
        self._metrics.ready.set(self._health.is_ready)

    async def _watch_core(self, client: CoreClient) -> None:
        """Follows the core's heartbeats until it is gone, or frozen for too long."""
        while not client.is_lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await client.wait_lost()
                    return
            load = self._load_meter.load
            num_tokens = client.num_waiting_tokens + load.num_waiting_prefill_tokens
            self._watch.tick(
                num_tokens=min(num_tokens, self._max_step_tokens),
                tokens_per_second=load.prefill_rate,
            )
            self._metrics.core_silence.set(self._watch.silence)
            await self._follow_watch(client)
            patience = self._watch.limit + self._options.frozen_core_exit_seconds
            if self._watch.silence > patience:
                return

    async def _follow_watch(self, client: CoreClient) -> None:
        """Changes the state when the core has frozen or recovered."""
        is_frozen = self._watch.is_frozen
        if is_frozen and not self.is_core_frozen:
            _logger.error(
                "core frozen silence_seconds=%g limit_seconds=%g num_open_requests=%d "
                "exit_seconds=%g",
                self._watch.silence,
                self._watch.limit,
                client.num_open,
                self._options.frozen_core_exit_seconds,
            )
            self._metrics.core_freezes.inc()
            client.suspend(core_frozen())
            self._fail_watches(core_frozen())
            await self._enter(State.FROZEN)
        elif self.is_core_frozen and not is_frozen:
            _logger.warning("core woke up detail=the engine serves again")
            client.resume()
            self._cache_log.recover()
            await self._enter(State.SERVING)

    def _fail_watches(self, error: RequestError) -> None:
        self._cache_log.fail(error)
        if self._vllm is not None:
            self._vllm.fail(error)

    def _handle_step(self, output: StepOutput) -> None:
        self._watch.heard(output.stats.step_seconds)
        self._metrics.count_step(output.stats)
        self._metrics.ranks.update(output.rank_stats)
        self._load_meter.update(output.stats)
        self._cache_log.append(output.cache_delta)
        self._metrics.cached_blocks.set(self._cache_log.num_hashes)
        if self._vllm is not None:
            self._vllm.handle_step(output)


def _client_names(options: ServerOptions) -> ClientNames | None:
    if options.tls_client_names is None:
        return None
    if options.tls_client_ca is None:
        raise StartupError("--tls-client-names needs --tls-client-ca, too")
    return ClientNames(options.tls_client_names)


def _vllm_servicer(health: Health, metrics: EngineMetrics) -> "VllmServicer":
    # It imports an optional package.
    from engine_service.server.vllm.servicer import VllmServicer

    return VllmServicer(health, metrics)
