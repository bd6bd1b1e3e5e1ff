"""Runs the workers of a router: processes that share its ports, each a router of its own.

The supervisor serves no requests. It starts the workers, starts one again that has ended, and
answers on the operations port for all of them.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from router.config import RouterConfig
from router.errors import StartupError
from router.workers.backoff import Backoff
from router.workers.joined_metrics import JoinedMetrics
from router.workers.silence import Silence
from router.workers.worker import Worker
from router.workers.worker_metrics import WorkerMetrics
from servicekit.certificate_metrics import CertificateCollector
from servicekit.http_server import Answer, Handler, HttpServer
from servicekit.listening import reserved_port
from servicekit.operations import metrics_handler, probe_handler
from servicekit.process import exit_within, raise_file_limit
from servicekit.signals import Stopped, end_signals
from servicekit.tls import client_tls, operations_tls, server_tls

_LAST_SECONDS = 2.0
"""Time that an orderly end gets after a second signal."""
_LATE_SECONDS = 5.0
"""Time beyond the drain grace after which a worker that has not ended is killed."""
_ASK_SECONDS = 5.0
"""How often workers are asked for their metrics; one that is killed loses no more than that."""
_SCRAPE_SECONDS = 2.0
"""Time for the workers to report for a scrape; the last report stands for a later one."""

_logger = logging.getLogger(__name__)


def supervise(config: RouterConfig) -> int:
    """Runs all workers until SIGTERM or SIGINT; returns the exit code.

    The first signal lets running requests of all workers finish within the grace and is a good
    end; a second ends at once, with the exit code of a process that it ended.

    Raises:
        StartupError: The router cannot serve; the message says what to do.
    """
    # What each worker would find, too.
    server_tls(config.tls_cert, config.tls_key, config.tls_client_ca)
    client_tls(config.engine_tls_cert, config.engine_tls_key, config.engine_tls_ca)
    raise_file_limit()
    with asyncio.Runner() as runner, _reserved_ports(config) as reserved:
        return runner.run(_supervise(reserved))


async def _supervise(config: RouterConfig) -> int:
    # Its events belong to the loop that runs when they are made.
    return await _Supervisor(config).run()


@contextlib.contextmanager
def _reserved_ports(config: RouterConfig) -> Iterator[RouterConfig]:
    """Yields the settings with the ports that the workers share."""
    with contextlib.ExitStack() as held:
        port = held.enter_context(reserved_port(config.host, config.port, "port"))
        http_port = config.http_port
        if http_port is not None:
            http_port = held.enter_context(reserved_port(config.host, http_port, "http-port"))
        yield dataclasses.replace(config, port=port, http_port=http_port)


class _Supervisor:
    """The supervisor of one router."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._signals = end_signals(self._end_soon)
        self._is_ending = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._metrics = WorkerMetrics(config.workers)
        self._joined = JoinedMetrics(self._metrics.registry)
        self._workers = [
            Worker(number, config, self._joined.update) for number in range(config.workers)
        ]
        self._silence = {worker: Silence(worker) for worker in self._workers}
        tls = operations_tls(config.operations_tls_cert, config.operations_tls_key)
        if tls is not None:
            certificates = CertificateCollector("pagestream_router")
            certificates.sources = [tls]
            self._metrics.registry.register(certificates)
        self._operations = HttpServer(
            {
                "/metrics": self._scrape_handler(),
                "/livez": probe_handler(self._liveness),
                "/readyz": probe_handler(self._readiness),
            },
            tls,
        )

    async def run(self) -> int:
        """Supervises until told to end; returns the exit code."""
        failure: StartupError | None = None
        try:
            port = await self._operations.start(self._config.host, self._config.operations_port)
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(self._keep(worker)) for worker in self._workers]
                asking = tasks.create_task(self._ask_regularly())
                announcing = tasks.create_task(self._announce(port))
                try:
                    async with self._signals.interruption():
                        await self._failure
                except Stopped:
                    await self._drain(keeping)
                except StartupError as error:
                    failure = error
                    self._end_at_once()
                asking.cancel()
                announcing.cancel()
        finally:
            await self._operations.stop()
        if failure is not None:
            raise failure
        _logger.info("router ended")
        return self._signals.exit_code

    async def _keep(self, worker: Worker) -> None:
        """Runs a worker, and starts it again whenever it has ended unasked."""
        backoff = Backoff()
        while not self._is_ending.is_set():
            started = time.monotonic()
            # Where others serve, it shall not take connections that it cannot serve yet.
            others_are_ready = any(one.is_ready for one in self._workers)
            try:
                end = await worker.run(waits_until_ready=others_are_ready)
            except OSError as error:
                end = f"it cannot be started: {error.strerror}"
            self._joined.retire(worker.number)
            if self._is_ending.is_set():
                return
            if not worker.has_listened.is_set():
                self._fail(worker, end)
                return
            seconds = backoff.seconds_after(time.monotonic() - started)
            _logger.warning(
                "worker ended worker=%d restart_seconds=%g detail=%s",
                worker.number,
                seconds,
                worker.cannot_start or end,
            )
            self._metrics.count_restart(worker.number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._is_ending.wait()

    def _fail(self, worker: Worker, end: str) -> None:
        """Ends all, as what one worker lacks at its first start, all do."""
        text = worker.cannot_start or f"worker {worker.number}: {end}; the log above may say why"
        if not self._failure.done():
            self._failure.set_exception(StartupError(text))

    async def _announce(self, operations_port: int) -> None:
        config = self._config
        for worker in self._workers:
            await worker.has_listened.wait()
        http_port = "" if config.http_port is None else f" http_port={config.http_port}"
        _logger.info(
            "workers listening host=%s port=%d operations_port=%d%s workers=%d",
            config.host,
            config.port,
            operations_port,
            http_port,
            config.workers,
        )

    async def _drain(self, keeping: list[asyncio.Task[None]]) -> None:
        grace = self._config.drain_grace_seconds
        self._is_ending.set()
        _logger.info("router draining grace_seconds=%g workers=%d", grace, len(self._workers))
        for worker in self._workers:
            worker.terminate()
        await asyncio.wait(keeping, timeout=grace + _LATE_SECONDS)
        for worker in self._workers:
            if worker.is_running:
                _logger.error(
                    "worker killed worker=%d detail=it has not ended in its grace", worker.number
                )
                worker.kill()

    def _end_soon(self, code: int) -> None:
        for worker in self._workers:
            worker.terminate()
        exit_within(_LAST_SECONDS, code)

    def _end_at_once(self) -> None:
        self._is_ending.set()
        for worker in self._workers:
            worker.kill()

    async def _ask_regularly(self) -> None:
        while True:
            for silence in self._silence.values():
                silence.check()
            await asyncio.sleep(_ASK_SECONDS)

    def _scrape_handler(self) -> Handler:
        registry = CollectorRegistry()
        registry.register(self._joined)
        encode = metrics_handler(registry, self._before_scrape)

        async def answer(accepted: str) -> Answer:
            await asyncio.wait([worker.ask() for worker in self._workers], timeout=_SCRAPE_SECONDS)
            return await encode(accepted)

        return answer

    def _before_scrape(self) -> None:
        for worker in self._workers:
            families = self._joined.latest.get(worker.number, ())
            self._metrics.update(worker.number, families, is_ready=worker.is_ready)
        self._joined.snapshot()

    def _liveness(self) -> tuple[bool, str]:
        silent = [str(one.number) for one in self._workers if self._silence[one].is_silent]
        if silent:
            return False, f"no answer from worker {', '.join(silent)}"
        return True, "all workers that run answer"

    def _readiness(self) -> tuple[bool, str]:
        num_ready = sum(one.is_ready and not self._silence[one].is_silent for one in self._workers)
        state = "serving" if num_ready else "waiting"
        if self._is_ending.is_set():
            state, num_ready = "draining", 0
        return num_ready > 0, f"{state}: {num_ready} of {len(self._workers)} workers are ready"
