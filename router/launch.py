"""Puts the router together, runs it and ends it; the only file that knows everyone."""

import asyncio
import dataclasses
import functools
import logging
from typing import TYPE_CHECKING

from protos.pagestream.router.v1 import router_pb2
from protos.wire.channel import ChannelOptions, router_request_bytes
from router.access.keyring import Keyring
from router.config import RouterConfig
from router.engines.channels import EngineChannels
from router.engines.client import ClientSettings
from router.engines.discovery import Unusable, discover
from router.engines.fleet import Fleet
from router.errors import DOMAIN, Draining, RequestError, StartupError
from router.event_loop import GrpcEventLoop, let_loop_run_on
from router.request.dispatcher import Dispatcher
from router.request.pipeline import Bounds, Pipeline
from router.request.slow_readers import SlowReaders
from router.server.grpc_server import RouterServicer
from router.server.grpc_servers import GrpcServers
from router.server.health import Health, State
from router.server.key_check import KeyCheck
from router.server.metrics import ResourceUsage, RouterMetrics
from router.server.worker_link import Listening, StateChange, WorkerLink
from router.text.chat_template import TemplateSettings, read_template
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_state import ModelInfo
from servicekit.garbage import collect_garbage_rarely
from servicekit.handlers import Handlers, RefusalLog
from servicekit.http_server import HttpServer
from servicekit.operations import operations_handlers
from servicekit.process import exit_within, max_port_connections, raise_file_limit
from servicekit.signals import EndSignals, end_signals
from servicekit.tls import TlsSource, client_tls, operations_tls, server_tls

if TYPE_CHECKING:
    from router.http.door import HttpDoor

_SPARE_STREAMS = 1024
"""Calls of one connection beyond the requests that the router takes, refused with a reason."""
_FAREWELL_SECONDS = 2.0
"""Time that calls get to send their last status before they are cut."""
_LAST_SECONDS = 2.0
"""Time that an orderly end gets after a second signal."""
GC_THRESHOLDS = (20_000, 20, 20)
"""New objects after which the youngest are searched; Python's own 700 are a few requests."""

_logger = logging.getLogger(__name__)


def run(config: RouterConfig, link: WorkerLink | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    The first signal lets running requests finish within the grace and is a good end; a second
    ends at once, with the exit code of a process that it ended.

    Args:
        config: The settings.
        link: Leads to the supervisor, which has the operations port, if there are several workers.

    Raises:
        StartupError: The router cannot serve; the message says what to do.
    """
    raise_file_limit()
    with asyncio.Runner(loop_factory=GrpcEventLoop) as runner:
        return runner.run(_serve(config, link))


async def _serve(config: RouterConfig, link: WorkerLink | None) -> int:
    # gRPC's server belongs to the loop that runs when it is made.
    return await _Router(config, link).serve()


def _template_settings(config: RouterConfig, metrics: RouterMetrics) -> TemplateSettings:
    settings = TemplateSettings(
        cpu_seconds=config.template_seconds,
        max_prompt_bytes=config.max_prompt_bytes,
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
        on_end=metrics.template_worker_ended,
    )
    if config.chat_template is None:
        return settings
    return dataclasses.replace(settings, source=read_template(config.chat_template, settings))


class _Certificates:
    """All certificates of a router; None where there is plain text.

    Raises:
        StartupError: One cannot be used, or an option lacks another.
    """

    def __init__(self, config: RouterConfig, *, is_worker: bool) -> None:
        self.clients = server_tls(config.tls_cert, config.tls_key, config.tls_client_ca)
        self.engines = client_tls(
            config.engine_tls_cert, config.engine_tls_key, config.engine_tls_ca
        )
        if self.engines is None and config.engine_tls_name:
            raise StartupError("--engine-tls-name needs --engine-tls-ca, too")
        # The operations port of workers is their supervisor's.
        self.operations = (
            None
            if is_worker
            else operations_tls(config.operations_tls_cert, config.operations_tls_key)
        )

    @property
    def sources(self) -> list[TlsSource]:
        """Those that there are."""
        found = (self.clients, self.engines, self.operations)
        return [one for one in found if one is not None]


def _connection_age(config: RouterConfig) -> ChannelOptions:
    ages = {
        "grpc.max_connection_age_ms": config.max_connection_age_seconds,
        "grpc.max_connection_age_grace_ms": config.max_connection_age_grace_seconds,
    }
    return [(name, max(1, round(1000 * age))) for name, age in ages.items() if age]


class _Router:
    """One router process."""

    def __init__(self, config: RouterConfig, link: WorkerLink | None) -> None:
        self._config = config
        self._link = link
        certificates = _Certificates(config, is_worker=link is not None)
        self._tls = certificates.clients
        self._metrics = RouterMetrics()
        self._metrics.certificates.sources = certificates.sources
        self._refusals = RefusalLog(self._metrics.count_malformed_message)
        try:
            self._discovery = discover(
                engines=config.engines,
                engines_file=config.engines_file,
                engine_dns=config.engine_dns,
                interval=config.discovery_interval,
            )
        except Unusable as error:
            raise StartupError(str(error)) from None
        self._keyring = None if config.api_keys_file is None else Keyring(config.api_keys_file)
        self._metrics.keys.keyring = self._keyring
        self._fleet = Fleet(
            (),
            ClientSettings(
                max_buffered_tokens=config.max_buffered_tokens,
                max_open_requests=config.max_concurrent_requests,
                refusals=self._refusals,
                channels=EngineChannels(certificates.engines, config.engine_tls_name),
            ),
        )
        self._dispatcher = Dispatcher(
            self._fleet, placement=config.placement, observers=self._metrics
        )
        self._tokenizers = TokenizerPool(
            self._fleet.fetch_tokenizer,
            config.tokenizer_threads,
            in_use=self._fleet.tokenizers_in_use,
            settings=_template_settings(config, self._metrics),
        )
        self._pipeline = Pipeline(
            self._dispatcher,
            self._tokenizers,
            self._metrics,
            Bounds(
                max_concurrent_requests=config.max_concurrent_requests,
                max_prompt_bytes=config.max_prompt_bytes,
                max_request_bytes=config.max_request_bytes,
                max_queued_prompt_tokens=config.max_queued_prompt_tokens,
            ),
            allow_special_tokens_in_content=config.allow_special_tokens_in_content,
        )
        self._slow_readers = SlowReaders(config.slow_reader_seconds)
        self._health = Health()
        self._http = None if config.http_port is None else self._make_http_door()
        self._operations = HttpServer(
            operations_handlers(self._metrics.registry, self._health, self._update_metrics),
            certificates.operations,
        )
        # Calls of one connection that gRPC keeps, those included whose client reads no more.
        max_streams = config.max_concurrent_requests + _SPARE_STREAMS
        self._servers = GrpcServers(
            config.host,
            certificates.clients,
            max_request_bytes=router_request_bytes(config.max_prompt_bytes),
            options=[("grpc.max_concurrent_streams", max_streams), *_connection_age(config)],
            interceptors=[] if self._keyring is None else [KeyCheck(self._keyring)],
        )

    async def serve(self) -> int:
        """Serves until told to end; returns the exit code."""
        end_soon = functools.partial(exit_within, _LAST_SECONDS)
        signals = end_signals(end_soon)
        with self._tokenizers:
            try:
                if self._link is None or not self._link.waits_until_ready:
                    await self._listen()
                async with asyncio.TaskGroup() as tasks:
                    reports = tasks.create_task(self._report(), name="reports")
                    fleet = tasks.create_task(self._fleet.run(), name="fleet")
                    discovery = tasks.create_task(self._follow_engines(), name="discovery")
                    readiness = tasks.create_task(self._follow_readiness(), name="readiness")
                    readers = tasks.create_task(self._slow_readers.run(), name="slow readers")
                    keys = tasks.create_task(self._follow_keys(), name="API keys")
                    await signals.wait_first()
                    readiness.cancel()
                    await self._drain(signals)
                    # Before the fleet: what still runs is cancelled on its engines.
                    await self._stop_http()
                    await self._servers.stop(None)
                    readers.cancel()
                    keys.cancel()
                    discovery.cancel()
                    fleet.cancel()
                    reports.cancel()
            finally:
                await self._stop_http()
                await self._servers.stop(None)
                await self._operations.stop()
        if self._link is not None:
            self._update_metrics()
            await self._link.close(self._metrics.registry)
        _logger.info("router ended")
        return signals.exit_code

    async def _listen(self) -> None:
        config = self._config
        is_shared = self._link is not None
        ports = []
        if not is_shared:
            port = await self._operations.start(config.host, config.operations_port)
            ports.append(f"operations_port={port}")
        ports.insert(0, f"port={await self._start_server()}")
        if self._http is not None and config.http_port is not None:
            port = await self._http.start(config.host, config.http_port, is_shared=is_shared)
            ports.append(f"http_port={port}")
        _logger.info(
            "router listening host=%s %s placement=%s max_port_connections=%d",
            config.host,
            " ".join(ports),
            config.placement,
            max_port_connections(),
        )
        if self._link is not None:
            self._link.tell(Listening())

    async def _report(self) -> None:
        """Answers the supervisor of several workers."""
        if self._link is not None:
            await self._link.run(self._metrics.registry, self._update_metrics)

    async def _enter(self, state: State) -> None:
        await self._health.enter(state)
        if self._link is not None:
            self._link.tell(StateChange(is_ready=self._health.is_ready))

    def _make_http_door(self) -> "HttpDoor":
        # Imported here, as a router without it needs no web framework in its memory.
        from router.http.door import HttpDoor
        from router.http.service import Service

        config = self._config
        service = Service(
            pipeline=self._pipeline,
            models=self._fleet.models,
            slow_readers=self._slow_readers,
            max_body_bytes=router_request_bytes(config.max_prompt_bytes),
            keyring=self._keyring,
        )
        return HttpDoor(service, config.max_concurrent_requests, self._tls)

    async def _stop_http(self, grace_seconds: float = 0.0) -> None:
        if self._http is not None:
            await self._http.stop(grace_seconds)

    async def _start_server(self) -> int:
        config = self._config
        servicer = RouterServicer(self._pipeline, self._fleet, self._slow_readers, self._keyring)
        handlers = Handlers(self._servers, domain=DOMAIN, refusals=self._refusals)
        handlers.add(router_pb2.DESCRIPTOR.services_by_name["RouterService"], servicer)
        handlers.add_health(self._health.servicer)
        handlers.add_reflection()
        await self._enter(State.WAITING)
        return await self._servers.start(config.port, is_reserved=self._link is not None)

    async def _follow_engines(self) -> None:
        """Tells the fleet which engines there are, and again whenever that changes."""
        async for addresses in self._discovery.addresses():
            _logger.info("engines addresses=%s", ",".join(addresses))
            self._fleet.set_addresses(addresses)

    async def _follow_keys(self) -> None:
        if self._keyring is not None:
            await self._keyring.run()

    async def _follow_readiness(self) -> None:
        """Keeps the probes true to the fleet; an engine's tokenizer comes before its readiness.

        Of several models, the first that has come so far is enough: no engine holds up others.
        """
        is_settled = False
        loads: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._fleet.wait_ready()
                for info in self._served():
                    if info.name not in loads or loads[info.name].done():
                        loads[info.name] = tasks.create_task(self._load_tokenizer(info))
                serving = [loads[info.name] for info in self._served()]
                if serving:
                    await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
                if not is_settled:
                    is_settled = True
                    if self._link is not None and self._link.waits_until_ready:
                        await self._listen()
                    collect_garbage_rarely(*GC_THRESHOLDS)
                    let_loop_run_on()
                await self._enter(State.SERVING)
                names = ",".join(model.info.name for model in self._fleet.models())
                _logger.info("router ready models=%s", names)
                await self._fleet.wait_unready()
                await self._enter(State.WAITING)
                _logger.warning("router not ready detail=no engine takes requests")

    def _served(self) -> list[ModelInfo]:
        return [model.info for model in self._fleet.models() if model.num_serving_engines]

    async def _load_tokenizer(self, info: ModelInfo) -> None:
        try:
            await self._tokenizers.get(info)
        # Those who send token IDs need none, and the next request tries again.
        except RequestError as error:
            _logger.warning("tokenizer not loaded model=%s error=%s", info.name, error)
        # One engine's files must not end the router.
        except Exception:
            _logger.exception("tokenizer not loaded model=%s", info.name)

    async def _drain(self, signals: EndSignals) -> None:
        grace = self._config.drain_grace_seconds
        self._pipeline.drain()
        await self._enter(State.DRAINING)
        if self._http is not None:
            self._http.drain()
        _logger.info("router draining grace_seconds=%g", grace)
        async with asyncio.TaskGroup() as tasks:
            idle = tasks.create_task(self._pipeline.wait_idle())
            again = tasks.create_task(signals.wait_second())
            done, pending = await asyncio.wait(
                (idle, again), timeout=grace, return_when=asyncio.FIRST_COMPLETED
            )
            for task in pending:
                task.cancel()
        if idle not in done:
            why = "second signal" if again in done else "drain grace over"
            _logger.warning("router ends with requests in progress reason=%s", why)
        if not done:
            over = Draining(
                f"the router is exiting: its drain grace of {grace:g} s is over",
                {"drain_grace_seconds": f"{grace:g}"},
            )
            self._dispatcher.end_requests(over)
            await asyncio.gather(
                self._stop_http(_FAREWELL_SECONDS), self._servers.stop(_FAREWELL_SECONDS)
            )

    def _update_metrics(self) -> None:
        self._metrics.update(
            self._fleet.engines(),
            self._fleet.statistics(),
            ResourceUsage(
                num_discovery_failures=self._discovery.num_failures,
                num_request_bytes=self._pipeline.request_bytes.held,
                num_tasks=len(asyncio.all_tasks()),
            ),
        )
